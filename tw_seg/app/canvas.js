// The picture that is drawn on. Props: picture, overlay (URLs), classes, colors, value (the strokes as JSON).
const canvas = element.querySelector("canvas");
const chips = element.querySelector(".chips");
const brush = element.querySelector(".brush");
const overlaid = element.querySelector(".overlaid");
const context = canvas.getContext("2d");
const UNKNOWN = 255, SIDE = 768;
let picture = null, overlay = null, strokes = [], drawing = null, label = 0;

const colorOf = (one) => (one === UNKNOWN ? "#b0b0b0" : props.colors[one]);

function addChip(one, name) {
  const chip = document.createElement("button");
  chip.type = "button";
  chip.dataset.label = one;
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = colorOf(one);
  chip.append(dot, name);
  chip.addEventListener("click", () => choose(one));
  chips.append(chip);
}

function choose(one) {
  label = one;
  for (const chip of chips.querySelectorAll("button")) chip.setAttribute("aria-pressed", chip.dataset.label === String(one));
}

function draw() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!picture) return;
  context.imageSmoothingEnabled = false;
  context.drawImage(overlay && overlaid.checked ? overlay : picture, 0, 0, canvas.width, canvas.height);
  const { width, height } = canvas;
  for (const stroke of drawing ? [...strokes, drawing] : strokes) {
    const places = stroke.points.map(([x, y]) => [x * width, y * height]);
    for (const [extra, color] of [[Math.max(width, height) / 300, "#ffffff"], [0, colorOf(stroke.label)]]) {
      context.strokeStyle = color;
      context.lineWidth = 2 * stroke.radius * Math.max(width, height) + extra;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(...places[0]);
      for (const [x, y] of places) context.lineTo(x + 0.01, y); // a line without length would not be drawn
      context.stroke();
    }
  }
}

function send() {
  props.value = JSON.stringify(strokes);
  draw();
}

function load(url, use) {
  if (!url) return use(null);
  const image = new Image();
  image.onload = () => use(image);
  image.src = url;
}

function showPicture() {
  load(props.picture, (image) => {
    picture = image;
    element.classList.toggle("empty", !image);
    if (image) {
      // A small picture is enlarged, so that what is drawn on it is smooth.
      const times = Math.max(1, Math.floor(SIDE / Math.max(image.naturalWidth, image.naturalHeight)));
      [canvas.width, canvas.height] = [times * image.naturalWidth, times * image.naturalHeight];
    }
    draw();
  });
}

function showOverlay() {
  load(props.overlay, (image) => { overlay = image; draw(); });
}

function showStrokes() {
  strokes = JSON.parse(props.value || "[]");
  draw();
}

function find(event) {
  const box = canvas.getBoundingClientRect();
  const share = (value, start, length) => Math.min(1, Math.max(0, (value - start) / length));
  return [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
}

canvas.addEventListener("pointerdown", (event) => {
  if (!picture || event.button !== 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  drawing = { label, radius: Number(brush.value) / 1000, points: [find(event)] };
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (drawing) { drawing.points.push(find(event)); draw(); }
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (!drawing) return;
    strokes = [...strokes, drawing];
    drawing = null;
    send();
  });
}
overlaid.addEventListener("change", draw);
element.querySelector(".undo").addEventListener("click", () => { strokes = strokes.slice(0, -1); send(); });
element.querySelector(".clear").addEventListener("click", () => { strokes = []; send(); });

props.classes.forEach((name, one) => addChip(one, name));
addChip(UNKNOWN, "eraser");
choose(0);
watch("picture", showPicture);
watch("overlay", showOverlay);
watch("value", showStrokes);
showPicture();
showOverlay();
