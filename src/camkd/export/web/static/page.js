import { describeMaximum, drawColorScale, drawMap } from "./heatmap.js";
import { UnreadableImageError, decode, toSquare } from "./images.js";
import { loadModel } from "./model.js";

const $ = id => document.getElementById(id);
const SMALL_SIDE = 128;  // images with fewer pixels per side are shown pixelated
const ANNOUNCE_INTERVAL = 3000;  // ms between two announcements for screen readers while the camera runs
const MIN_PROBABILITY = 0.0005;  // smaller probabilities are shown as "< 0.1 %"
const NUM_TOP_CLASSES = 5;
const MAX_NAME_CHARACTERS = 40;  // of a file
const NUM_NAMED_CLASSES = 20;  // the names of further classes are folded

let config;  // content of page.json
let predict;  // the model
let current = null;  // the image on the page: { canvas, prediction, teacher, name, milliseconds }
let selectedClass = null;  // class of the heatmap; null: the top class, without the contrast class
let contrastClass = null;  // class whose evidence is subtracted, never the class of the heatmap; null: none
let video = null;  // the running camera
let generation = 0;  // increases with each new input, so that results of earlier inputs are dropped
let announced = { label: "", at: 0 };

// --- from an image to a prediction

async function classify(source, { name, teacher = null }) {
  const { pixels, canvas } = toSquare(source, config);
  const start = performance.now();
  const prediction = await predict(pixels, config.size);
  return { canvas, pixels, prediction, teacher, name, milliseconds: performance.now() - start };
}

async function openImage(blob, { name: fullName, teacher }) {
  const name = shortenMiddle(fullName);
  const ownGeneration = startInput();
  try {
    const bitmap = await decode(blob, config.value_range);
    const result = await classify(bitmap, { name, teacher });
    bitmap.close();
    if (ownGeneration !== generation) return;
    selectedClass = contrastClass = null;
    showResult(result);
    showStatus(describePrediction());
  } catch (error) {
    if (ownGeneration === generation) refuse(error instanceof UnreadableImageError ? `${name} ${error.message}.` : `${name} cannot be read: ${error}.`);
  }
}

// A long name of a file is cut in the middle, so that its suffix stays.
function shortenMiddle(name) {
  const characters = [...name];
  if (characters.length <= MAX_NAME_CHARACTERS) return name;
  const endLength = Math.floor((MAX_NAME_CHARACTERS - 1) / 2);
  return [...characters.slice(0, MAX_NAME_CHARACTERS - 1 - endLength), "…", ...characters.slice(-endLength)].join("");
}

// A new input ends the camera, and the results of earlier inputs are dropped.
function startInput() {
  stopCamera();
  return ++generation;
}

// Without an answer to the latest input, no earlier image and answer stay on the page.
function refuse(message) {
  startInput();
  current = null;
  globalThis.camkd = null;
  $("result").hidden = true;
  showStatus("");
  $("error").textContent = message;
}

// --- the result

const ranking = probabilities => probabilities.map((_, k) => k).sort((a, b) => probabilities[b] - probabilities[a]);
const percent = fraction => `${fraction < MIN_PROBABILITY ? "< 0.1" : fraction >= 0.995 && fraction < 1 ? "> 99" : (100 * fraction).toFixed(fraction < 0.0995 ? 1 : 0)}\u00a0%`;
const label = k => config.classes[k];
const isUnsure = probabilities => config.threshold !== null && Math.max(...probabilities) < config.threshold;
const answer = probabilities => `${isUnsure(probabilities) ? "unsure: " : ""}${label(ranking(probabilities)[0])}`;
const mapClass = () => selectedClass ?? ranking(current.prediction.probabilities).find(k => k !== contrastClass);
const mapLabel = () => (contrastClass === null ? label(mapClass()) : `${label(mapClass())} vs. ${label(contrastClass)}`);

// The map of the selected class, or with a contrast class the difference of the two maps. Undefined without the maps.
function selectedMap(maps) {
  const map = maps[mapClass()];
  if (contrastClass === null) return map;
  const other = maps[contrastClass];
  return map && other && map.map((value, cell) => value - other[cell]);
}

function showResult(result) {
  current = result;
  const { pixels, prediction, teacher } = result;
  globalThis.camkd = { logits: Array.from(prediction.logits), maps: prediction.maps, grid: prediction.grid, pixels };  // for the console
  $("error").textContent = "";
  const ranked = ranking(prediction.probabilities);
  const k = mapClass();
  $("result").hidden = false;
  showFigure($("student"), selectedMap(prediction.maps), prediction.grid, `${answer(prediction.probabilities)}, ${percent(prediction.probabilities[ranked[0]])}`);
  const teacherMap = teacher && selectedMap(teacher.maps);
  $("teacher").hidden = !teacherMap;
  if (teacherMap) {
    const [[topClass, probability]] = Object.entries(teacher.probabilities).sort((a, b) => b[1] - a[1]);
    showFigure($("teacher"), teacherMap, teacher.grid, `teacher: ${label(topClass)}, ${percent(probability)}`);
  }
  showTopClasses(ranked.slice(0, NUM_TOP_CLASSES), prediction.probabilities, k);
  $("map-class").value = selectedClass === null ? "" : String(selectedClass);
  $("contrast-class").value = contrastClass === null ? "" : String(contrastClass);
  applyOpacity();
}

function showFigure(figure, map, grid, caption) {
  const [image, overlay] = figure.querySelectorAll("canvas");
  image.width = current.canvas.width;
  image.height = current.canvas.height;
  image.getContext("2d").drawImage(current.canvas, 0, 0);
  image.classList.toggle("pixelated", current.canvas.width < SMALL_SIDE);
  drawMap(overlay, map, grid, config.colormap);
  const description = `evidence for ${mapLabel()}: ${describeMaximum(map, grid)}`;
  image.setAttribute("aria-label", `${current.name}; ${description}`);
  figure.querySelector("figcaption").replaceChildren(caption, document.createElement("br"), description);
}

function showTopClasses(classes, probabilities, shownClass) {
  const list = $("top-classes");
  while (list.children.length < classes.length) list.append(createClassButton());
  classes.forEach((k, index) => {
    const button = list.children[index].firstChild;
    const [bar, name, probability] = button.children;
    button.dataset.class = k;
    button.setAttribute("aria-pressed", String(k === shownClass));
    bar.style.width = `${100 * probabilities[k]}%`;
    name.textContent = label(k);
    probability.textContent = percent(probabilities[k]);
  });
}

function createClassButton() {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Show the heatmap of this class";
  button.append(...["i", "span", "span"].map(name => document.createElement(name)));
  button.onclick = () => selectClass(Number(button.dataset.class));
  item.append(button);
  return item;
}

function selectClass(k) {
  selectedClass = k;
  if (k === contrastClass) contrastClass = null;
  showSelection();
}

function selectContrast(k) {
  contrastClass = k;
  if (k === selectedClass) selectedClass = null;
  showSelection();
}

function showSelection() {
  if (!current) return;
  showResult(current);
  const { maps, grid } = current.prediction;
  showStatus(`Evidence for ${mapLabel()}: ${describeMaximum(selectedMap(maps), grid)}.`);
}

const selectedOption = id => ($(id).value === "" ? null : Number($(id).value));

function applyOpacity() {
  const opacity = Number($("opacity").value) / 100;
  $("opacity").setAttribute("aria-valuetext", `${Math.round(100 * opacity)} percent`);
  for (const overlay of document.querySelectorAll(".map")) overlay.style.opacity = opacity;
  for (const image of document.querySelectorAll(".image")) image.style.filter = `grayscale(${Math.min(1, 2 * opacity)})`;
}

function describePrediction() {
  const { prediction: { probabilities }, name, milliseconds } = current;
  const classes = ranking(probabilities).slice(0, 3).filter(k => probabilities[k] >= MIN_PROBABILITY);
  return `${name}: ${isUnsure(probabilities) ? `unsure, below ${percent(config.threshold)}; ` : ""}${classes.map(k => `${label(k)} ${percent(probabilities[k])}`).join(", ")}. Predicted in ${milliseconds.toFixed(1)} ms.`;
}

const showStatus = text => { $("status").textContent = text; };

// --- the camera

async function startCamera() {
  const ownGeneration = startInput();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
    if (ownGeneration !== generation) return stream.getTracks().forEach(track => track.stop());
    video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
    stream.getVideoTracks()[0].onended = () => { if (ownGeneration === generation) refuse("The camera has stopped."); };
    await video.play();
  } catch (error) {
    if (ownGeneration === generation) refuse(`The camera is not available (${error.name === "NotAllowedError" ? "permission denied" : error.message}).`);
    return;
  }
  if (ownGeneration !== generation) return;
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop the camera";
  selectedClass = contrastClass = null;
  try {
    await showFrames(ownGeneration);
  } catch (error) {
    if (ownGeneration === generation) refuse(`The image of the camera cannot be read: ${error}.`);
  }
}

async function showFrames(ownGeneration) {
  const times = [];
  while (ownGeneration === generation) {
    const result = await classify(video, { name: "Camera" });
    if (ownGeneration !== generation) return;
    showResult(result);
    times.push(performance.now());
    if (times.length > 30) times.shift();
    if (times.length > 1) $("speed").textContent = `${(1000 * (times.length - 1) / (times.at(-1) - times[0])).toFixed(0)} frames/s, ${current.milliseconds.toFixed(1)} ms in the model`;
    announceTopClass();
    await new Promise(resolve => requestAnimationFrame(resolve));
  }
}

function announceTopClass() {
  const topLabel = answer(current.prediction.probabilities);
  if (topLabel === announced.label || performance.now() - announced.at < ANNOUNCE_INTERVAL) return;
  announced = { label: topLabel, at: performance.now() };
  showStatus(`Camera: ${topLabel}.`);
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

// --- inputs

function addListeners() {
  $("file").onchange = () => {
    const [file] = $("file").files;
    if (file) openImage(file, { name: file.name });
    $("file").value = "";
  };
  $("paste").onclick = pasteImage;
  $("camera").onclick = () => (video ? stopCamera() : startCamera());
  $("map-class").onchange = () => selectClass(selectedOption("map-class"));
  $("contrast-class").onchange = () => selectContrast(selectedOption("contrast-class"));
  $("opacity").oninput = applyOpacity;
  document.addEventListener("paste", event => openTransfer(event.clipboardData, "The clipboard"));
  document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("drag-over"); });
  document.addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("drag-over"); });
  document.addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("drag-over");
    openTransfer(event.dataTransfer, "The dropped item");
  });
}

function openTransfer(transfer, origin) {
  const [file] = transfer.files;
  if (file) openImage(file, { name: file.name || origin });
  else refuse(`${origin} contains no image file.`);
}

async function pasteImage() {
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find(name => name.startsWith("image/"));
      if (type) return openImage(await item.getType(type), { name: "The clipboard" });
    }
    refuse("The clipboard contains no image.");
  } catch {
    refuse("This browser does not allow a page to read the clipboard. Press Ctrl+V or Command+V instead.");
  }
}

async function showExamples() {
  const blobs = await Promise.all(config.examples.map(async example => (await fetchFile(`${example.file}?version=${config.version}`)).blob()));
  config.examples.forEach((example, index) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const image = new Image();
    image.src = URL.createObjectURL(blobs[index]);
    image.alt = "";
    button.type = "button";
    button.append(image, example.true_class);
    button.onclick = () => openImage(blobs[index], { name: `Example (${example.true_class})`, teacher: example.teacher });
    item.append(button);
    $("examples").querySelector("ul").append(item);
  });
  $("examples").hidden = !config.examples.length;
}

// --- start

async function start() {
  config = await (await fetchFile("page.json")).json();
  document.title = config.title;
  const accuracy = config.accuracy === null ? "" : `, accuracy ${percent(config.accuracy)} on its test images`;
  $("model-summary").textContent = `· ${config.title}: ${config.params.toLocaleString("en")} parameters, ${Math.round(config.bytes / 1000)} KB${accuracy}`;
  showClasses();
  for (const id of ["map-class", "contrast-class"]) config.classes.forEach((name, k) => $(id).append(new Option(name, k)));
  $("contrast").hidden = config.classes.length < 2;
  drawColorScale($("color-scale"), config.colormap);
  predict = await loadModel(`model.onnx?version=${config.version}`, config.runtime);
  await predict(new Uint8ClampedArray(4 * config.size ** 2), config.size);  // warm-up: the first call is slower
  await showExamples();
  addListeners();
  showStatus("Ready.");
  navigator.serviceWorker?.register(`offline.js?version=${config.version}`).catch(() => {});  // the page works without it, but not offline
}

// The server may have another page at this address since the last visit.
async function fetchFile(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} must be on the server, got status ${response.status}`);
  return response;
}

// The model predicts one of the classes for an image of another class too, so the names are listed above the prediction.
function showClasses() {
  const { classes } = config;
  const numHidden = Math.max(0, classes.length - NUM_NAMED_CLASSES);
  const more = numHidden ? `, and ${numHidden.toLocaleString("en")} more` : "";
  const names = classes.slice(0, NUM_NAMED_CLASSES).join(", ");
  $("classes").textContent = `The model predicts one of these ${classes.length.toLocaleString("en")} classes for every image, even for an image of another class: ${names}${more}.`;
  $("all-classes").hidden = !numHidden;
  $("all-classes").querySelector("p").textContent = classes.join(", ");
}

start().catch(error => refuse(`The page cannot start: ${error.message ?? error}.`));
