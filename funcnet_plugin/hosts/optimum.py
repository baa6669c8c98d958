"""Adds `optimum-cli funcnet ...`, the same command as `funcnet ...`."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo


class FuncnetCommand(BaseOptimumCLICommand):
    """Hands everything after `funcnet` to our own command line, which is imported only then."""

    COMMAND = CommandInfo("funcnet", help="Functional-network pruning: inspect, prune, demo, ...")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument(
            "arguments",
            nargs=REMAINDER,
            help="a command of funcnet and its options; 'optimum-cli funcnet prune --help' "
            "explains one, 'optimum-cli funcnet' alone lists them",
        )

    def run(self) -> None:
        from funcnet_plugin.cli import main

        main(self.args.arguments, program="optimum-cli funcnet")
