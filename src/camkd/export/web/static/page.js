import { drawMap, drawScale, strongest } from "./heatmap.js";
import { openModel } from "./model.js";
import { Unreadable, decode, square } from "./pictures.js";

const $ = id => document.getElementById(id);
const SMALL = 128;  // pixels of a side below which a picture is shown with its pixels as squares
const ANNOUNCE_EVERY = 3000;  // ms between two answers read out while the camera runs

const LITTLE = 0.0005;  // a share that is not worth a number

let page, answer;  // what the page is about; the network
let now = null;  // what is shown: { shown, found, teacher, from }
let chosen = null;  // the class whose map is asked for; null: the likeliest
let video = null, generation = 0, announced = { label: "", at: 0 };

// --- from a picture to an answer

async function ask(source, { teacher = null, from }) {
  const { pixels, shown } = square(source, page.size);
  const started = performance.now(), found = await answer(pixels, page.size);
  now = { shown, found, teacher, from, took: performance.now() - started };
  globalThis.camkd = { logits: Array.from(found.logits), maps: found.maps, grid: found.grid, pixels };  // for the console
}

async function look(blob, more) {
  stopCamera();
  const mine = ++generation;
  try {
    const bitmap = await decode(blob);
    if (mine !== generation) return;
    chosen = null;
    await ask(bitmap, more);
    bitmap.close();
    if (mine !== generation) return;
    show();
    say(inWords());
    problem("");
  } catch (error) {
    problem(`${more.from} cannot be read: ${error instanceof Unreadable ? error.message : error}.`);
  }
}

// --- what is shown

const order = chances => chances.map((_, k) => k).sort((a, b) => chances[b] - chances[a]);
const percent = share => `${share < LITTLE ? "< 0.1" : share >= 0.995 && share < 1 ? "> 99" : (100 * share).toFixed(share < 0.0995 ? 1 : 0)}\u00a0%`;
const label = k => page.classes[k];

function show() {
  const { found, teacher } = now, likeliest = order(found.chances), shown = chosen ?? likeliest[0];
  $("stage").hidden = false;
  view($("student"), found.maps[shown], found.grid, shown, `${label(likeliest[0])}, ${percent(found.chances[likeliest[0]])}`);
  const known = teacher && teacher.maps[shown];
  $("teacher").hidden = !known;
  if (known) {
    const [first] = Object.entries(teacher.chances).sort((a, b) => b[1] - a[1]);
    view($("teacher"), known, teacher.grid, shown, `its teacher: ${label(first[0])}, ${percent(first[1])}`);
  }
  list(likeliest.slice(0, 5), found.chances, shown);
  $("which").value = chosen === null ? "" : String(chosen);
  fade();
}

function view(figure, map, grid, shown, caption) {
  const [picture, overlay] = figure.querySelectorAll("canvas");
  picture.width = now.shown.width;
  picture.height = now.shown.height;
  picture.getContext("2d").drawImage(now.shown, 0, 0);
  picture.classList.toggle("small-picture", now.shown.width < SMALL);
  drawMap(overlay, map, grid, page.colours);
  const where = `evidence for ${label(shown)}: ${strongest(map, grid)}`;
  picture.setAttribute("aria-label", `${now.from}; ${where}`);
  figure.querySelector("figcaption").replaceChildren(caption, document.createElement("br"), where);
}

function list(classes, chances, shown) {
  const top = $("top");
  while (top.children.length < classes.length) top.append(row());
  classes.forEach((k, place) => {
    const button = top.children[place].firstChild, [bar, name, share] = button.children;
    button.dataset.class = k;
    button.setAttribute("aria-pressed", String(k === shown));
    bar.style.width = `${100 * chances[k]}%`;
    name.textContent = label(k);
    share.textContent = percent(chances[k]);
  });
}

function row() {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.title = "Show the map of this class";
  button.append(...["i", "span", "span"].map(name => document.createElement(name)));
  button.onclick = () => choose(Number(button.dataset.class));
  item.append(button);
  return item;
}

function choose(k) {
  chosen = k;
  if (!now) return;
  show();
  const { found } = now, shown = chosen ?? order(found.chances)[0];
  say(`Evidence for ${label(shown)}: ${strongest(found.maps[shown], found.grid)}.`);
}

function fade() {
  const opacity = Number($("opacity").value) / 100;
  $("opacity").setAttribute("aria-valuetext", `${Math.round(100 * opacity)} per cent`);
  for (const overlay of document.querySelectorAll(".map")) overlay.style.opacity = opacity;
  for (const picture of document.querySelectorAll(".picture")) picture.style.filter = `grayscale(${Math.min(1, 2 * opacity)})`;
}

function inWords() {
  const { found, from } = now, likeliest = order(found.chances).slice(0, 3).filter(k => found.chances[k] >= LITTLE);
  return `${from}: ${likeliest.map(k => `${label(k)} ${percent(found.chances[k])}`).join(", ")}. Answered in ${now.took.toFixed(1)} ms.`;
}

const say = text => { $("status").textContent = text; };
const problem = text => { $("problem").textContent = text; };

// --- the camera

async function startCamera() {
  const mine = ++generation;
  problem("");
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
    if (mine !== generation) return stream.getTracks().forEach(track => track.stop());
    video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
    await video.play();
  } catch (error) {
    video = null;
    return problem(`The camera cannot be used (${error.name === "NotAllowedError" ? "it is not allowed to" : error.message}).`);
  }
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop the camera";
  chosen = null;
  const times = [];
  while (video && mine === generation) {
    await ask(video, { from: "Camera" });
    if (mine !== generation) return;
    show();
    times.push(performance.now());
    if (times.length > 30) times.shift();
    if (times.length > 1) $("speed").textContent = `${(1000 * (times.length - 1) / (times.at(-1) - times[0])).toFixed(0)} frames/s, ${now.took.toFixed(1)} ms in the network`;
    readOut();
    await new Promise(next => requestAnimationFrame(next));
  }
}

function readOut() {
  const { found } = now, name = label(order(found.chances)[0]);
  if (name === announced.label || performance.now() - announced.at < ANNOUNCE_EVERY) return;
  announced = { label: name, at: performance.now() };
  say(`Camera: ${name}.`);
}

function stopCamera() {
  if (!video) return;
  generation++;
  video.srcObject.getTracks().forEach(track => track.stop());
  video = null;
  announced = { label: "", at: 0 };
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Use the camera";
  $("speed").textContent = "";
}

// --- ways in

function listen() {
  $("file").onchange = () => {
    const [file] = $("file").files;
    if (file) look(file, { from: file.name });
    $("file").value = "";
  };
  $("paste").onclick = paste;
  $("camera").onclick = () => (video ? stopCamera() : startCamera());
  $("which").onchange = () => choose($("which").value === "" ? null : Number($("which").value));
  $("opacity").oninput = fade;
  document.addEventListener("paste", event => given(event.clipboardData, "The clipboard"));
  document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dropping"); });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    given(event.dataTransfer, "What was dropped");
  });
}

function given(transfer, whence) {
  const [file] = transfer.files;
  if (file) look(file, { from: file.name || whence });
  else problem(`${whence} holds no picture file.`);
}

async function paste() {
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find(name => name.startsWith("image/"));
      if (type) return look(await item.getType(type), { from: "The clipboard" });
    }
    problem("The clipboard holds no picture.");
  } catch {
    problem("This browser does not let a page read the clipboard: press Ctrl+V or Command+V instead.");
  }
}

function offerExamples() {
  for (const example of page.examples) {
    const item = document.createElement("li"), button = document.createElement("button"), image = new Image();
    image.src = example.file;
    image.alt = "";
    button.type = "button";
    button.append(image, example.truth);
    button.onclick = async () => look(await (await fetch(example.file)).blob(), { from: `Example (${example.truth})`, teacher: example.teacher });
    item.append(button);
    $("examples").querySelector("ul").append(item);
  }
  $("examples").hidden = !page.examples.length;
}

// --- start

async function start() {
  page = await (await fetch("page.json")).json();
  document.title = page.title;
  const right = page.accuracy === null ? "" : `, right on ${percent(page.accuracy)} of its test pictures`;
  $("about").textContent = `· ${page.title}: ${page.params.toLocaleString("en")} parameters, ${Math.round(page.bytes / 1000)} KB${right}`;
  page.classes.forEach((name, k) => $("which").append(new Option(name, k)));
  drawScale($("colours"), page.colours);
  answer = await openModel("model.onnx");
  await answer(new Uint8ClampedArray(4 * page.size ** 2), page.size);  // the first answer takes longer
  listen();
  offerExamples();
  say("Ready.");
  navigator.serviceWorker?.register("offline.js").catch(() => {});  // without it the page works, but not without a network
}

start().catch(error => problem(`The page cannot start: ${error.message ?? error}.`));
