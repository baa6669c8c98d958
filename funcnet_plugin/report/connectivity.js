"use strict";
// Shows how networks act together: of some of them, of the clusters of all, and who acts with one.
const connectivity = (() => {
  const PARTNERS = 8;
  const kinds = {}; // name -> Int8Array, what stands above the diagonal, row after row
  let current = 0;
  let chosen = null; // two clusters
  let isOpen = false;

  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed.values), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Int8Array(await new Response(stream).arrayBuffer());
  }

  function value(kind, i, j) {
    if (i === j) return 1;
    const [low, high] = i < j ? [i, j] : [j, i];
    const n = networks.length;
    return (kinds[kind][low * n - (low * (low + 1)) / 2 + high - low - 1] / 127) * data.connectivity[kind].scale;
  }

  const kindNow = () => element("kind").value;
  const ofCluster = (cluster) => networks.flatMap((network, i) => (network.cluster === cluster ? [i] : []));
  const byCluster = (numbers) => numbers.sort((a, b) => networks[a].cluster - networks[b].cluster || a - b);

  // Each gives the networks of the rows and those of the columns.
  const AMONG = {
    "networks found together with this one": () => {
      const block = networks[current].block;
      const found = byCluster(networks.flatMap((network, i) => (network.block === block ? [i] : [])));
      return [found, found];
    },
    "networks of its cluster": () => [ofCluster(networks[current].cluster), ofCluster(networks[current].cluster)],
    "the clusters that were chosen": () => (chosen || [networks[current].cluster, networks[current].cluster]).map(ofCluster),
  };

  function drawMatrix() {
    const kind = kindNow();
    const [rows, columns] = AMONG[element("among").value]();
    const z = rows.map((i) => columns.map((j) => value(kind, i, j)));
    const apart = rows.flatMap((i, y) => columns.map((j, x) => (i === j ? 0 : Math.abs(z[y][x]))));
    const most = apart.reduce((a, b) => Math.max(a, b), 0) || 1;
    const name = (i) => networks[i].name;
    const trace = {
      type: "heatmap", z, x: columns.map(name), y: rows.map(name), zmin: -most, zmax: most, colorscale: "RdBu",
      hovertemplate: "%{x} and %{y}: %{z:.2f}<extra></extra>",
    };
    Plotly.react("connectivity", [trace], layout({
      height: Math.min(isNarrow() ? 380 : 560, Math.max(200, 90 + 16 * rows.length)),
      yaxis: { autorange: "reversed", type: "category", showticklabels: rows.length <= 40, automargin: true },
      xaxis: { type: "category", showticklabels: columns.length <= 40, automargin: true },
    }), PLAIN);
  }

  function drawClusters() {
    const kind = kindNow();
    const n = Math.max(...networks.map((network) => network.cluster)) + 1;
    const sums = Array.from({ length: n }, () => new Float64Array(n));
    const counts = Array.from({ length: n }, () => new Float64Array(n));
    const values = kinds[kind];
    const scale = data.connectivity[kind].scale / 127;
    let place = 0;
    for (let i = 0; i < networks.length; i++) {
      for (let j = i + 1; j < networks.length; j++) {
        const [a, b] = [networks[i].cluster, networks[j].cluster];
        const size = Math.abs(values[place++]) * scale;
        sums[a][b] += size;
        counts[a][b] += 1;
        if (a !== b) {
          sums[b][a] += size;
          counts[b][a] += 1;
        }
      }
    }
    const z = sums.map((row, a) => Array.from(row, (sum, b) => (counts[a][b] ? sum / counts[a][b] : null)));
    const names = z.map((_, cluster) => `C${cluster}`);
    Plotly.react("clusters", [{
      type: "heatmap", z, x: names, y: names, zmin: 0, colorscale: "Viridis", hovertemplate: "%{x} and %{y}: %{z:.3f}<extra></extra>",
    }], layout({
      height: isNarrow() ? 380 : 480, dragmode: "zoom",
      yaxis: { autorange: "reversed", type: "category", automargin: true }, xaxis: { type: "category", automargin: true },
    }), PLAIN);
  }

  function drawPartners() {
    const parent = element("partners");
    parent.replaceChildren();
    const kind = kindNow();
    const others = networks.map((_, i) => i).filter((i) => i !== current);
    others.sort((a, b) => Math.abs(value(kind, current, b)) - Math.abs(value(kind, current, a)));
    add(parent, "span", `Goes with ${networks[current].name} most: `);
    for (const other of others.slice(0, PARTNERS)) {
      const button = add(parent, "button", `${networks[other].name} ${value(kind, current, other).toFixed(2)}`);
      button.type = "button";
      button.addEventListener("click", () => choose(other));
      parent.append(" ");
    }
  }

  function show(number) {
    current = number;
    if (!isOpen) return;
    drawMatrix();
    drawPartners();
  }

  function onClicks(id, take) {
    element(id).on("plotly_click", (event) => take(event.points[0].y, event.points[0].x));
  }

  function offer() {
    for (const kind of Object.keys(data.connectivity)) add(element("kind"), "option", kind);
    for (const among of Object.keys(AMONG)) add(element("among"), "option", among);
    const n = new Set(networks.map((network) => network.cluster)).size;
    element("about-clusters").textContent = data.silhouette === null ? "All networks are one cluster." :
      `By their correlation the ${networks.length} networks fall into ${n} clusters (silhouette ${shown(data.silhouette)}).`;
    element("kind").addEventListener("change", () => {
      drawMatrix();
      drawPartners();
      drawClusters();
    });
    element("among").addEventListener("change", drawMatrix);
  }

  async function open() {
    for (const [kind, packed] of Object.entries(data.connectivity)) kinds[kind] = await unpack(packed);
    isOpen = true;
    offer();
    show(current);
    drawClusters();
    onClicks("connectivity", (row) => choose(byName.get(row)));
    onClicks("clusters", (row, column) => {
      chosen = [row, column].map((name) => Number(name.slice(1)));
      element("among").value = "the clusters that were chosen";
      drawMatrix();
      element("connectivity-title").scrollIntoView();
    });
    document.body.dataset.connected = "true";
    performance.mark("connected");
  }

  return { show, open };
})();
