// The confusion matrix: a cell shows its images. It is a table of buttons, or a canvas if there are many classes.

/** Turn every element with data-cell into a button; in the table, arrow keys move between buttons. */
function initCells() {
  for (const element of document.querySelectorAll("[data-cell]")) {
    const [label, predicted, count] = element.dataset.cell.split(",").map(Number);
    const description = `${className(label)}, predicted ${className(predicted)}: ${count}`;
    const attributes = { type: "button", class: "cell", "aria-label": description, title: description };
    const button = make("button", attributes, ...element.childNodes);
    button.addEventListener("click", () => openCell(label, predicted, count));
    element.replaceChildren(button);
  }
  const table = byId("confusion-table");
  const buttons = [...(table?.querySelectorAll("button") ?? [])];
  buttons.forEach((button, index) => (button.tabIndex = index ? -1 : 0));
  table?.addEventListener("keydown", (event) => moveFocus(event, buttons, stepsFrom(buttons, document.activeElement)));
}

/** Return the step of each arrow key. Empty cells have no button, so up and down move to the nearest row with a button. */
function stepsFrom(buttons, current) {
  const position = (button) => [button.closest("tr").rowIndex, button.closest("td").cellIndex];
  const [row, column] = current.closest("td") ? position(current) : [0, 0];
  const verticalStep = (direction) => {
    const candidates = buttons.filter((button) => direction * (position(button)[0] - row) > 0);
    const distance = (button) => 1000 * Math.abs(position(button)[0] - row) + Math.abs(position(button)[1] - column);
    const target = candidates.reduce((best, button) => (best && distance(best) <= distance(button) ? best : button), null);
    return target ? buttons.indexOf(target) - buttons.indexOf(current) : 0;
  };
  return { ArrowRight: 1, ArrowLeft: -1, ArrowDown: verticalStep(1), ArrowUp: verticalStep(-1) };
}

/** Draw the matrix with one pixel per cell. Pointer and arrow keys select a cell; a line of text describes the cell. */
function initCanvas() {
  const canvas = byId("confusion-canvas");
  if (!canvas) return;
  const side = gallery.classes.length;
  const counts = new Map(gallery.confusion.map(([label, predicted, count]) => [label * side + predicted, count]));
  const totals = new Float64Array(side);
  for (const [label, , count] of gallery.confusion) totals[label] += count;
  const cursor = { label: 0, predicted: 0 };
  const draw = () => {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    for (const [label, predicted, count] of gallery.confusion) {
      context.fillStyle = `rgb(42 120 214 / ${Math.max(0.12, (count / totals[label]) ** 0.6)})`;
      context.fillRect(predicted, label, 1, 1);
    }
    byId("confusion-cursor").style.cssText = `left:${(100 * cursor.predicted) / side}%;top:${(100 * cursor.label) / side}%;width:${100 / side}%;height:${100 / side}%`;
  };
  const currentCount = () => counts.get(cursor.label * side + cursor.predicted) ?? 0;
  const moveTo = (label, predicted) => {
    const clamp = (index) => Math.min(Math.max(index, 0), side - 1);
    Object.assign(cursor, { label: clamp(label), predicted: clamp(predicted) });
    draw();
    byId("confusion-cell").textContent = `${isolate(className(cursor.label))}, predicted ${isolate(className(cursor.predicted))}: ${currentCount()}`;
  };
  const moveToPointer = (event) => {
    const box = canvas.getBoundingClientRect();
    const index = (position, start, length) => Math.floor(((position - start) / length) * side);
    moveTo(index(event.clientY, box.top, box.height), index(event.clientX, box.left, box.width));
  };
  const open = () => currentCount() && openCell(cursor.label, cursor.predicted, currentCount());
  canvas.addEventListener("pointermove", moveToPointer);
  canvas.addEventListener("click", (event) => {
    moveToPointer(event);
    open();
  });
  canvas.addEventListener("keydown", (event) => {
    const distance = event.shiftKey ? 10 : 1;
    const offsets = { ArrowRight: [0, distance], ArrowLeft: [0, -distance], ArrowDown: [distance, 0], ArrowUp: [-distance, 0] };
    const offset = offsets[event.key];
    if (offset) moveTo(cursor.label + offset[0], cursor.predicted + offset[1]);
    else if (event.key === "Enter" || event.key === " ") open();
    else return;
    event.preventDefault();
  });
  byId("confusion-app").hidden = false;
  byId("confusion-static").hidden = true;
  draw();
}

initGallery();
initDetail();
initCells();
initCanvas();
