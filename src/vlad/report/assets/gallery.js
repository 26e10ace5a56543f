// The grid of images, of which only what is on the screen exists, and the large view.
const [TILE_W, TILE_H] = [140, 180];
let shown = [];
let drawn = new Map();

// How differently two runs rank an image among its category's normal ones; -1 where one of them has no score.
const gap = (i) => (R.other_above[i] === null ? -1 : Math.abs(R.above[i] - R.other_above[i]));

function filterImages() {
  const [group, label, decision, error, order] = ["f-group", "f-label", "f-decision", "f-error", "f-order"].map((id) => $(id).value);
  const part = $("f-name").value.toLowerCase();
  shown = (group === "" ? everyone : members[Number(group)]).filter((i) =>
    (label === "" || R.label[i] === Number(label)) &&
    (decision === "" || flagged(i) === (decision === "1")) &&
    (error === "" || (error === "flips" ? flips(i) : error === "any" ? errorOf(i) !== "" : error === "none" ? errorOf(i) === "" : errorOf(i) === error)) &&
    (part === "" || R.name[i].toLowerCase().includes(part) || R.path[i].toLowerCase().includes(part)));
  const by = {
    high: (a, b) => R.score[b] - R.score[a] || a - b,
    low: (a, b) => R.score[a] - R.score[b] || a - b,
    near: (a, b) => Math.abs(margin(a)) - Math.abs(margin(b)) || a - b,
    differs: (a, b) => gap(b) - gap(a) || a - b,
    name: (a, b) => (R.name[a] < R.name[b] ? -1 : R.name[a] > R.name[b] ? 1 : a - b),
  };
  shown = shown.slice().sort(by[order]);
  const without = everyone.length - facts.thumbnails > 0 ? `; thumbnails of ${facts.thumbnails} are kept` : "";
  $("shown").textContent = `${shown.length} of ${everyone.length} images${without}`;
  drawn.forEach((element) => element.remove());
  drawn = new Map();
  drawGrid();
}

const perRow = () => Math.max(1, Math.floor(($("grid").clientWidth + 8) / TILE_W));

function drawGrid() {
  const grid = $("grid");
  const columns = perRow();
  grid.style.height = `${Math.ceil(shown.length / columns) * TILE_H}px`;
  const top = grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((-top - 300) / TILE_H)) * columns;
  const last = Math.min(shown.length, Math.max(0, Math.ceil((window.innerHeight - top + 300) / TILE_H)) * columns);
  drawn.forEach((element, place) => {
    if ((place < first || place >= last) && element !== document.activeElement) {
      element.remove();
      drawn.delete(place);
    }
  });
  for (let place = first; place < last; place += 1) {
    if (!drawn.has(place)) {
      const element = tile(shown[place], shown);
      element.dataset.place = place;
      element.setAttribute("role", "listitem");
      grid.append(element);
      drawn.set(place, element);
    }
    const element = drawn.get(place);
    element.style.left = `${(place % columns) * TILE_W}px`;
    element.style.top = `${Math.floor(place / columns) * TILE_H}px`;
  }
}

let waiting = false;
function drawSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawGrid();
  });
}
window.addEventListener("scroll", drawSoon, { passive: true });
window.addEventListener("resize", drawSoon);

$("grid").addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow(), ArrowDown: perRow() };
  const place = Number(event.target.dataset.place);
  if (!(event.key in moves) || Number.isNaN(place)) return;
  event.preventDefault();
  const to = place + moves[event.key];
  if (to < 0 || to >= shown.length) return;
  const row = Math.floor(to / perRow());
  const top = $("grid").getBoundingClientRect().top + row * TILE_H;
  if (top < 0) window.scrollBy(0, top - 20);
  if (top + TILE_H > window.innerHeight) window.scrollBy(0, top + TILE_H - window.innerHeight + 20);
  drawGrid();
  drawn.get(to).focus({ preventScroll: true });
});

// -- large view ----------------------------------------------------------------------------------------------

let [open, around] = [-1, []];

function openLarge(i, list) {
  [open, around] = [i, list];
  const media = mediaOf(i);
  const [address, kind] = R.link[i].split("#");
  const source = kind === "other" || !address ? null : address;
  $("large-name").textContent = R.name[i];
  const t = state.thresholds[R.group[i]];
  $("large-facts").textContent = [
    G[R.group[i]].name,
    `score ${short(R.score[i])} ${flagged(i) ? "≥" : "<"} threshold ${short(t)}: ${flagged(i) ? "anomalous" : "normal"}`,
    R.p[i] === null ? "" : `p-value ${short(R.p[i])}`,
    R.label[i] >= 0 ? `label ${NAMES[R.label[i]]}` : "",
    errorOf(i),
    facts.against && R.other_above[i] !== null
      ? `normal images that score as high: ${share(R.above[i], 1)} here, ${share(R.other_above[i], 1)} in ${facts.against}` : "",
  ].filter(Boolean).join(" · ");
  const views = [];
  const figure = (name, element) => views.push(make("figure", {}, make("figcaption", { text: name }), element));
  const note = make("span", {});
  const originals = (options, name) => {
    const seen = source ? media || { seen: [1, 1] } : { ...(media || {}), seen: [1, 1] };
    const { holder, picture } = stack(i, seen, source || (media ? media.image : ""), media && options);
    picture.addEventListener("error", () => {
      if (media && picture.getAttribute("src") !== media.image) {
        picture.src = media.image;
        const cover = holder.querySelector("canvas");
        if (cover) cover.style.cssText = "width:100%;height:100%";
        note.textContent = "The original is not where it was: this is its thumbnail (--report.copy keeps originals). ";
      }
    });
    picture.alt = name;
    figure(name, holder);
  };
  if (source || media) originals(null, "image");
  if (media && media.map) {
    const map = make("canvas", { class: "map", role: "img", "aria-label": "anomaly map" });
    paint(map, i, media, { overlay: false, factor: 4, outline: false }).catch((error) => console.warn(String(error)));
    figure(`anomaly map, up to ${short(media.low + (LEVELS - 1) * media.step)}`, map);
    if (media.mask) {
      const truth = make("canvas", { class: "map", role: "img", "aria-label": "ground truth" });
      paintMask(truth, media).catch((error) => console.warn(String(error)));
      figure("ground truth", truth);
    }
    originals({ overlay: true, factor: 4, outline: true }, media.mask ? "overlay, truth outlined" : "overlay");
  }
  $("views").replaceChildren(...views);
  const links = [note];
  if (address) links.push(make("a", { href: address, text: "original" }), " ");
  if (R.panel[i]) links.push(make("a", { href: R.panel[i], text: "heat map" }), " ");
  links.push(R.path[i]);
  $("large-links").replaceChildren(...links);
  const place = around.indexOf(i);
  $("previous").disabled = place <= 0;
  $("next").disabled = place < 0 || place >= around.length - 1;
  if (!$("large").open) $("large").showModal();
}

function step(by) {
  const to = around[around.indexOf(open) + by];
  if (to !== undefined) openLarge(to, around);
}
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => $("large").close());
$("large").addEventListener("click", (event) => event.target === $("large") && $("large").close());
$("large").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
