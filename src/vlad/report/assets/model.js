// What the page knows: images, categories, thresholds, and what follows from them.
const facts = JSON.parse(document.getElementById("facts").textContent);
const R = facts.rows;
const G = facts.groups;
const isTest = facts.verb === "test";
const LEVELS = facts.levels;
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const members = G.map(() => []); // scored images of each category, the highest score first
const failed = [];
R.group.forEach((group, i) => (R.score[i] === null ? failed : members[group]).push(i));
members.forEach((list) => list.sort((a, b) => R.score[b] - R.score[a]));
const everyone = members.flat();
const hasTruth = everyone.some((i) => R.label[i] === 1) && everyone.some((i) => R.label[i] === 0);

function bestBalanced(list) {
  // The lowest score of the largest balanced accuracy: ties are flagged together.
  const anomalous = list.filter((i) => R.label[i] === 1).length;
  const normal = list.filter((i) => R.label[i] === 0).length;
  let [best, threshold, hits, alarms] = [-Infinity, Infinity, 0, 0];
  list.forEach((i, place) => {
    hits += R.label[i] === 1;
    alarms += R.label[i] === 0;
    const last = place + 1 === list.length || R.score[list[place + 1]] !== R.score[i];
    const gain = hits / anomalous - alarms / normal;
    if (last && gain > best) [best, threshold] = [gain, R.score[i]];
  });
  return threshold;
}

const origin = []; // where each category's first threshold comes from
const base = members.map((list, group) => {
  const kinds = new Set(list.map((i) => R.label[i]));
  if (G[group].threshold !== null) return (origin.push("the decision's"), G[group].threshold);
  if (kinds.has(0) && kinds.has(1)) return (origin.push("the largest balanced accuracy on these very images"), bestBalanced(list));
  origin.push("no decision was given: the highest 5 % of the scores, to begin with");
  return list.length ? R.score[list[Math.min(list.length - 1, Math.floor(0.05 * list.length))]] : 0;
});

// All categories together: by p-values, else by the share of each category's normal images, else by the score itself.
const scale = everyone.length && everyone.every((i) => R.p[i] !== null) ? "p"
  : hasTruth && members.every((list) => !list.length || list.some((i) => R.label[i] === 0)) ? "share" : "score";
const position = new Float64Array(R.group.length).fill(NaN);
members.forEach((list) => {
  const normals = list.filter((i) => R.label[i] === 0).map((i) => R.score[i]); // the highest first
  let above = 0;
  list.forEach((i) => {
    while (above < normals.length && normals[above] >= R.score[i]) above += 1;
    position[i] = scale === "p" ? R.p[i] : scale === "share" ? above / normals.length : R.score[i];
  });
});

const state = { group: G.length === 1 ? 0 : -1, thresholds: base.slice(), all: null };
const listeners = [];
const changed = () => listeners.forEach((listener) => listener());
const chosen = () => (state.group < 0 ? everyone : members[state.group]);
const flagged = (i) => R.score[i] >= state.thresholds[R.group[i]];
const flaggedAtFirst = (i) => R.score[i] >= base[R.group[i]];
const flips = (i) => flagged(i) !== flaggedAtFirst(i);

function setThreshold(value) {
  if (state.group >= 0) state.thresholds[state.group] = value;
  else {
    state.all = value;
    state.thresholds = members.map((list) => {
      if (scale === "score") return value;
      const inside = list.filter((i) => position[i] <= value);
      return inside.length ? R.score[inside[inside.length - 1]] : Infinity;
    });
  }
  changed();
}

function reset() {
  if (state.group >= 0) state.thresholds[state.group] = base[state.group];
  else [state.thresholds, state.all] = [base.slice(), null];
  changed();
}

function currentValue() {
  // What the slider stands for: a score, or a share of normal images.
  if (state.group >= 0) return state.thresholds[state.group];
  if (state.all !== null) return state.all;
  const inside = everyone.filter(flagged).map((i) => position[i]);
  if (scale === "score") return inside.reduce((least, one) => Math.min(least, one), range()[1]);
  return inside.reduce((most, one) => Math.max(most, one), 0);
}

function range() {
  if (state.group < 0 && scale !== "score") return [0, 1];
  const scores = chosen().map((i) => R.score[i]);
  const [low, high] = scores.reduce(([a, b], s) => [Math.min(a, s), Math.max(b, s)], [Infinity, -Infinity]);
  const room = (high - low || Math.abs(high) || 1) * 0.02;
  return scores.length ? [low - room, high + room] : [0, 1];
}

function count(list) {
  const c = { tp: 0, fp: 0, tn: 0, fn: 0, flagged: 0, total: list.length, toAnomalous: 0, toNormal: 0 };
  for (const i of list) {
    const flag = flagged(i);
    c.flagged += flag;
    if (R.label[i] === 1) c[flag ? "tp" : "fn"] += 1;
    if (R.label[i] === 0) c[flag ? "fp" : "tn"] += 1;
    if (flips(i)) c[flag ? "toAnomalous" : "toNormal"] += 1;
  }
  return c;
}

const errorOf = (i) => (R.label[i] === 0 && flagged(i) ? "false alarm" : R.label[i] === 1 && !flagged(i) ? "miss" : "");
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");
const short = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : "–");
const spread = members.map((list) => (list.length > 1 ? R.score[list[0]] - R.score[list[list.length - 1]] || 1 : 1));
const margin = (i) => (R.score[i] - state.thresholds[R.group[i]]) / spread[R.group[i]];
