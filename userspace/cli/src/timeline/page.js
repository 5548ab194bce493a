"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const svg = document.getElementById("chart");
  const detail = document.getElementById("detail");
  const range = document.getElementById("range");
  const LABEL = 150, LANE = 18, MARKS = 20, CURVE = 52, AXIS = 24, LEAST = 10;
  const from = data.from, to = Math.max(data.to, data.from + LEAST);
  const margin = (to - from) * 0.02;
  let view = { from: from - margin, to: to + margin };
  let selected = null;

  const element = (name, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  };
  const clock = (at) => {
    const text = new Date(Math.floor(at / 1000)).toISOString().slice(11, 23);
    return text + String(((Math.floor(at) % 1000) + 1000) % 1000).padStart(3, "0");
  };
  const lasted = (micros) =>
    micros < 1e3 ? micros + " µs" : micros < 1e6 ? (micros / 1e3).toFixed(1) + " ms" : (micros / 1e6).toFixed(3) + " s";
  const bytes = (value) => {
    if (value === null) return "max";
    for (const [unit, size] of [["Gi", 2 ** 30], ["Mi", 2 ** 20], ["Ki", 2 ** 10]]) {
      if (value >= size) return +(value / size).toFixed(1) + unit;
    }
    return String(value);
  };
  const say = (key, text) => {
    selected = key;
    detail.textContent = text;
    draw();
  };
  const item = (made, key, title, text) => {
    made.classList.add("item");
    if (key === selected) made.classList.add("selected");
    made.dataset.key = key;
    element("title", {}, made, title);
    made.addEventListener("click", () => say(key, text));
  };

  function draw() {
    const width = Math.max(svg.clientWidth, 300);
    const scale = (width - LABEL) / (view.to - view.from);
    const x = (at) => LABEL + (at - view.from) * scale;
    const edge = (at) => Math.min(Math.max(x(at), LABEL), width);
    svg.replaceChildren();
    let y = AXIS;
    const plot = [];
    data.tracks.forEach((track, index) => {
      const height = Math.max(track.lanes.length * LANE + MARKS + (track.curves.length ? CURVE : 0), 34) + 8;
      plot.push({ track, index, y, height });
      y += height;
    });
    svg.setAttribute("height", y + 4);
    svg.setAttribute("viewBox", `0 0 ${width} ${y + 4}`);
    axis(width, y, x);
    for (const { track, index, y, height } of plot) {
      element("line", { x1: 0, x2: width, y1: y + height - 4, y2: y + height - 4 }, svg);
      const name = track.name.length > 20 ? track.name.slice(0, 19) + "…" : track.name;
      const label = element("text", { x: 8, y: y + 14, class: "track" }, svg, name);
      element("title", {}, label, track.name + " " + track.id);
      element("text", { x: 8, y: y + 29, class: "faint" }, svg, track.id.slice(0, 18));
      track.lanes.forEach((lane, row) => lane.forEach((span, place) => {
        const left = edge(span.from), right = edge(span.to);
        if (span.to < view.from || span.from > view.to) return;
        const top = y + row * LANE;
        const box = element("rect", { x: left, y: top, width: Math.max(right - left, 2), height: LANE - 3, rx: 2, class: span.style }, svg);
        const begin = span.isEarlier ? "before " + clock(span.from) : clock(span.from);
        const length = span.isOpen ? "open" : lasted(span.to - span.from);
        const text = `${span.name}: ${begin}, ${length}. ${span.detail}`;
        item(box, `s${index}.${row}.${place}`, text, text);
        if (right - left > 7 * span.name.length + 8) {
          element("text", { x: left + 4, y: top + 12, "pointer-events": "none" }, svg, span.name);
        }
      }));
      const middle = y + track.lanes.length * LANE + MARKS / 2;
      track.marks.forEach((mark, place) => {
        if (mark.at < view.from || mark.at > view.to) return;
        const at = x(mark.at);
        const shape = mark.name === "OOMKilled"
          ? `M${at - 7} ${middle - 5}l2 -2l5 5l5 -5l2 2l-5 5l5 5l-2 2l-5 -5l-5 5l-2 -2l5 -5z`
          : `M${at} ${middle - 6}l6 6l-6 6l-6 -6z`;
        const made = element("path", { d: shape, class: mark.style + " mark" }, svg);
        const text = `${mark.name} at ${clock(mark.at)}: ${mark.detail}`;
        item(made, `m${index}.${place}`, text, text);
      });
      curves(track, y + track.lanes.length * LANE + MARKS, x, width);
    }
    range.textContent = `${clock(view.from)} to ${clock(view.to)} (${lasted(view.to - view.from)})`;
  }

  function axis(width, height, x) {
    const span = view.to - view.from;
    let step = 10 ** Math.floor(Math.log10(span / 4));
    for (const factor of [1, 2, 5, 10]) {
      if (span / (step * factor) <= 8) { step *= factor; break; }
    }
    step = Math.max(step, 1);
    for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
      element("line", { x1: x(at), x2: x(at), y1: AXIS - 6, y2: height }, svg);
      const text = step >= 1e6 ? clock(at).slice(0, 8) : clock(at).slice(0, step >= 1e3 ? 12 : 15);
      element("text", { x: x(at) + 3, y: 13, class: "faint" }, svg, text);
    }
  }

  function curves(track, top, x, width) {
    const values = track.curves.flatMap((curve) => curve.points.map((point) => point.value)).filter((value) => value !== null);
    if (!values.length) return;
    const most = Math.max(...values) * 1.1;
    const height = CURVE - 8;
    const y = (value) => top + height - (value === null ? height : (value / most) * height);
    track.curves.forEach((curve, row) => {
      const inside = (at) => Math.min(Math.max(x(at), LABEL), width);
      let path = "";
      curve.points.forEach((point, place) => {
        if (curve.isStep && place > 0) path += `L${inside(point.at)} ${y(curve.points[place - 1].value)}`;
        path += `${path ? "L" : "M"}${inside(point.at)} ${y(point.value)}`;
      });
      const last = curve.points[curve.points.length - 1];
      if (curve.isStep) path += `L${inside(curve.until)} ${y(last.value)}`;
      element("path", { d: path, class: curve.isStep ? "step" : "usage" }, svg);
      // Samples may be many: points that would cover each other are drawn as a line only.
      let free = -Infinity;
      curve.points.forEach((point) => {
        if (point.at < view.from || point.at > view.to) return;
        if (!curve.isStep && x(point.at) < free) return;
        free = x(point.at) + 8;
        const dot = element("circle", { cx: x(point.at), cy: y(point.value), r: 3, class: curve.isStep ? "limit" : "main" }, svg);
        element("title", {}, dot, `${curve.name} ${bytes(point.value)} at ${clock(point.at)}`);
      });
      element("text", { x: 8, y: top + 12 + row * 13, class: "faint" }, svg, `${curve.name} ${bytes(last.value)}`);
    });
  }

  function zoom(factor, at) {
    const span = Math.min(Math.max((view.to - view.from) * factor, LEAST), (to - from) * 2 + 2 * margin);
    const share = (at - view.from) / (view.to - view.from);
    view = { from: at - span * share, to: at + span * (1 - share) };
    draw();
  }
  const centre = () => (view.from + view.to) / 2;
  const pan = (share) => {
    const by = (view.to - view.from) * share;
    view = { from: view.from + by, to: view.to + by };
    draw();
  };
  const fit = () => { view = { from: from - margin, to: to + margin }; draw(); };

  document.getElementById("in").addEventListener("click", () => zoom(0.5, centre()));
  document.getElementById("out").addEventListener("click", () => zoom(2, centre()));
  document.getElementById("fit").addEventListener("click", fit);
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const width = svg.clientWidth - LABEL;
    const share = (event.clientX - svg.getBoundingClientRect().left - LABEL) / width;
    zoom(event.deltaY < 0 ? 0.8 : 1.25, view.from + share * (view.to - view.from));
  }, { passive: false });
  let drag = null;
  svg.addEventListener("pointerdown", (event) => { drag = event.clientX; });
  svg.addEventListener("pointermove", (event) => {
    if (drag === null || Math.abs(event.clientX - drag) < 3) return;
    pan((drag - event.clientX) / (svg.clientWidth - LABEL));
    drag = event.clientX;
  });
  addEventListener("pointerup", () => { drag = null; });
  svg.addEventListener("keydown", (event) => {
    const action = { "+": () => zoom(0.5, centre()), "-": () => zoom(2, centre()), 0: fit,
      ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2) }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  document.querySelectorAll("#events tbody tr").forEach((row) => row.addEventListener("click", () => {
    document.querySelectorAll("#events tr.selected").forEach((other) => other.classList.remove("selected"));
    row.classList.add("selected");
    const at = Number(row.dataset.at), half = (view.to - view.from) / 2;
    view = { from: at - half, to: at + half };
    say(null, [...row.cells].map((cell) => cell.textContent).join("  "));
  }));
  addEventListener("resize", draw);
  draw();
})();
