// Thumbnails: blocks of data that are read when they are first needed, maps in the colours of their scale.
const blocks = new Map();
function mediaOf(i) {
  const number = Math.floor(i / facts.chunk);
  if (!blocks.has(number)) {
    const element = $(`media-${number}`);
    blocks.set(number, element ? JSON.parse(element.textContent) : []);
  }
  const media = blocks.get(number)[i % facts.chunk];
  if (!media) return null;
  const [image, map, low, step, mask, seen] = media;
  return { image: `data:image/webp;base64,${image}`, map, low, step, mask, seen };
}

const decoded = new Map(); // the last maps and masks, as ImageData
function pixelsOf(base64) {
  if (!decoded.has(base64)) {
    if (decoded.size > 400) decoded.delete(decoded.keys().next().value);
    decoded.set(base64, new Promise((resolve, reject) => {
      const picture = new Image();
      picture.onload = () => {
        const canvas = make("canvas", { width: picture.width, height: picture.height });
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(picture, 0, 0);
        resolve(context.getImageData(0, 0, picture.width, picture.height));
      };
      picture.onerror = () => reject(new Error("a map is damaged"));
      picture.src = `data:image/png;base64,${base64}`;
    }));
  }
  return decoded.get(base64);
}

function enlarged(data, factor, read) {
  // Bilinear values of an image at a multiple of its size; NaN where nothing was inspected.
  const [w, h] = [data.width * factor, data.height * factor];
  const values = new Float32Array(w * h);
  const at = (c, r) => read(data.data[4 * (Math.min(data.height - 1, Math.max(0, r)) * data.width + Math.min(data.width - 1, Math.max(0, c)))]);
  for (let r = 0; r < h; r += 1) {
    const v = (r + 0.5) / factor - 0.5;
    const [r0, fr] = [Math.floor(v), v - Math.floor(v)];
    for (let c = 0; c < w; c += 1) {
      const u = (c + 0.5) / factor - 0.5;
      const [c0, fc] = [Math.floor(u), u - Math.floor(u)];
      values[r * w + c] = (at(c0, r0) * (1 - fc) + at(c0 + 1, r0) * fc) * (1 - fr) + (at(c0, r0 + 1) * (1 - fc) + at(c0 + 1, r0 + 1) * fc) * fr;
    }
  }
  return { w, h, values };
}

async function paint(canvas, i, media, { overlay, factor, outline }) {
  // Draws a map; as an overlay it is clear where scores are usual. The truth is drawn around, where it is known.
  if (!media.map) return;
  const data = await pixelsOf(media.map);
  const { w, h, values } = enlarged(data, factor, (code) => (code ? media.low + (code - 1) * media.step : NaN));
  const [floor, low, high] = G[R.group[i]].scale;
  const picture = new ImageData(w, h);
  const clip = (v) => Math.min(1, Math.max(0, v));
  values.forEach((value, k) => {
    const strength = clip((value - low) / (high - low));
    const place = Math.round(255 * (0.4 * clip((value - floor) / (low - floor)) + 0.6 * strength));
    const known = !Number.isNaN(value);
    for (let c = 0; c < 3; c += 1) picture.data[4 * k + c] = known ? facts.palette[3 * place + c] : 150;
    picture.data[4 * k + 3] = !known ? 160 : overlay ? Math.round(255 * 0.8 * strength ** 0.6) : 255;
  });
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d");
  context.putImageData(picture, 0, 0);
  if (outline && media.mask) {
    const mask = await pixelsOf(media.mask);
    const times = Math.max(1, Math.round(w / mask.width));
    const big = enlarged(mask, times, (grey) => grey / 255);
    const line = new ImageData(big.w, big.h);
    const inside = (k) => big.values[k] >= 0.5;
    for (let k = 0; k < big.values.length; k += 1) {
      const [c, r] = [k % big.w, Math.floor(k / big.w)];
      const edge = inside(k) && (!c || !r || c === big.w - 1 || r === big.h - 1 || !inside(k - 1) || !inside(k + 1) || !inside(k - big.w) || !inside(k + big.w));
      if (edge) line.data.set([86, 220, 255, 255], 4 * k);
    }
    const layer = make("canvas", { width: big.w, height: big.h });
    layer.getContext("2d").putImageData(line, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(layer, 0, 0, w, h);
  }
}

async function paintMask(canvas, media) {
  const mask = await pixelsOf(media.mask);
  const big = enlarged(mask, 4, (grey) => grey / 255);
  const picture = new ImageData(big.w, big.h);
  big.values.forEach((value, k) => picture.data.set([value >= 0.5 ? 255 : 0, value >= 0.5 ? 255 : 0, value >= 0.5 ? 255 : 0, 255], 4 * k));
  canvas.width = big.w;
  canvas.height = big.h;
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function stack(i, media, source, options) {
  // An image with its map over the part that was seen.
  const picture = make("img", { alt: "", src: source, decoding: "async" });
  const holder = make("div", { class: "stack" }, picture);
  if (options) {
    const cover = make("canvas", { style: `width:${100 * media.seen[1]}%;height:${100 * media.seen[0]}%` });
    holder.append(cover);
    paint(cover, i, media, options).catch((error) => console.warn(String(error)));
  }
  return { holder, picture };
}

function tile(i, list) {
  const media = mediaOf(i);
  const picture = make("div", { class: "picture" });
  if (media) {
    const inner = { ...media, seen: [1, 1] }; // the thumbnail shows the part that was seen
    picture.append(stack(i, inner, media.image, $("f-maps").checked ? { overlay: true, factor: 1, outline: false } : null).holder);
  } else picture.append(make("div", { class: "nothing", text: "no thumbnail kept" }));
  const words = make("div", { class: "words" },
    make("div", { text: `${short(R.score[i])}${R.label[i] >= 0 ? ` · ${NAMES[R.label[i]]}` : ""}` }),
    make("div", { text: R.name[i].split("/").slice(-2).join("/") }),
    ...(G.length > 1 ? [make("div", { text: G[R.group[i]].name })] : []));
  const button = make("button", { type: "button", class: `tile${flagged(i) ? " flagged" : ""}`, title: R.path[i], "data-row": i }, picture, words);
  button.setAttribute("aria-label", `${R.name[i]}, score ${short(R.score[i])}, ${flagged(i) ? "anomalous" : "normal"}${errorOf(i) ? `, ${errorOf(i)}` : ""}`);
  if (errorOf(i)) button.append(make("span", { class: "mark", text: errorOf(i) }));
  if (flips(i)) button.append(make("span", { class: "mark flip", text: "flips" }));
  button.addEventListener("click", () => openLarge(i, list));
  return button;
}
