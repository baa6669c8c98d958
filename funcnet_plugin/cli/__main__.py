from funcnet_plugin.cli import main

main()
