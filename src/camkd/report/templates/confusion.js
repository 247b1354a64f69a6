// The confusion matrix opens the pictures behind a cell: a table of buttons, or for many classes a drawing.

/** Make a button of everything that names a cell; in the table arrow keys go from one to the next. */
function readyCells() {
  for (const place of document.querySelectorAll("[data-cell]")) {
    const [truth, label, count] = place.dataset.cell.split(",").map(Number);
    const words = `${className(truth)}, answered ${className(label)}: ${count}`;
    const button = make("button", { type: "button", class: "cell", "aria-label": words, title: words }, ...place.childNodes);
    button.addEventListener("click", () => openCell(truth, label, count));
    place.replaceChildren(button);
  }
  const table = byId("confusion-table");
  const buttons = [...(table?.querySelectorAll("button") ?? [])];
  buttons.forEach((button, place) => (button.tabIndex = place ? -1 : 0));
  table?.addEventListener("keydown", (event) => moveFocus(event, buttons, stepsFrom(buttons, document.activeElement)));
}

/** Empty cells are no buttons: up and down lead to the nearest one in the next row that has any. */
function stepsFrom(buttons, here) {
  const at = (button) => [button.closest("tr").rowIndex, button.closest("td").cellIndex];
  const [row, column] = here.closest("td") ? at(here) : [0, 0];
  const nearest = (rows) => {
    const goals = buttons.filter((button) => rows(at(button)[0] - row));
    const distance = (button) => 1000 * Math.abs(at(button)[0] - row) + Math.abs(at(button)[1] - column);
    const goal = goals.reduce((best, button) => (best && distance(best) <= distance(button) ? best : button), null);
    return goal ? buttons.indexOf(goal) - buttons.indexOf(here) : 0;
  };
  return { ArrowRight: 1, ArrowLeft: -1, ArrowDown: nearest((by) => by > 0), ArrowUp: nearest((by) => by < 0) };
}

/** With many classes: every cell a pixel; pointer and arrow keys choose one, and a line says what it is. */
function readyDrawing() {
  const canvas = byId("confusion-drawing");
  if (!canvas) return;
  const side = album.classes.length;
  const counts = new Map(album.confusion.map(([truth, label, count]) => [truth * side + label, count]));
  const totals = new Float64Array(side);
  for (const [truth, , count] of album.confusion) totals[truth] += count;
  const cursor = { truth: 0, label: 0 };
  const draw = () => {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    for (const [truth, label, count] of album.confusion) {
      context.fillStyle = `rgb(42 120 214 / ${Math.max(0.12, (count / totals[truth]) ** 0.6)})`;
      context.fillRect(label, truth, 1, 1);
    }
    byId("confusion-cursor").style.cssText = `left:${(100 * cursor.label) / side}%;top:${(100 * cursor.truth) / side}%;width:${100 / side}%;height:${100 / side}%`;
  };
  const countAt = () => counts.get(cursor.truth * side + cursor.label) ?? 0;
  const move = (truth, label) => {
    const within = (place) => Math.min(Math.max(place, 0), side - 1);
    Object.assign(cursor, { truth: within(truth), label: within(label) });
    draw();
    byId("confusion-cell").textContent = `${isolated(className(cursor.truth))}, answered ${isolated(className(cursor.label))}: ${countAt()}`;
  };
  const moveTo = (event) => {
    const box = canvas.getBoundingClientRect();
    const place = (at, from, length) => Math.floor(((at - from) / length) * side);
    move(place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width));
  };
  const open = () => countAt() && openCell(cursor.truth, cursor.label, countAt());
  canvas.addEventListener("pointermove", moveTo);
  canvas.addEventListener("click", (event) => (moveTo(event), open()));
  canvas.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const step = { ArrowRight: [0, far], ArrowLeft: [0, -far], ArrowDown: [far, 0], ArrowUp: [-far, 0] }[event.key];
    if (step) move(cursor.truth + step[0], cursor.label + step[1]);
    else if (event.key === "Enter" || event.key === " ") open();
    else return;
    event.preventDefault();
  });
  byId("confusion-app").hidden = false;
  byId("confusion-still").hidden = true;
  draw();
}

hang();
readyDetail();
readyCells();
readyDrawing();
