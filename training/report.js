"use strict";
// Maps over their image, with a slider for how far they cover it, and an enlarged view that compares two maps.
(() => {
  const root = document.documentElement;
  const sections = [...document.querySelectorAll("section.maps")];
  if (!sections.length || typeof HTMLDialogElement === "undefined") return;
  const make = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    return template.content.firstElementChild;
  };
  const covers = [];
  const cover = (percent) => {
    root.style.setProperty("--opacity", `${percent}%`);
    for (const input of covers) input.value = percent;
  };
  const slider = () => {
    const label = make('<label>Image <input type="range" min="0" max="100" step="5" aria-label="How far maps cover the image, %"> map</label>');
    const input = label.querySelector("input");
    input.addEventListener("input", () => cover(input.value));
    covers.push(input);
    return label;
  };

  const dialog = make(`<dialog aria-labelledby="enlarged">
    <div class="head"><h3 id="enlarged"></h3><button type="button">Close</button></div>
    <div class="stack"></div>
    <div class="tools"><label>Left of the line <select></select></label>
      <label class="divide">Line <input type="range" min="0" max="100" value="50" aria-label="Where the two maps meet, %"></label></div>
  </dialog>`);
  document.body.append(dialog);
  const stack = dialog.querySelector(".stack");
  const select = dialog.querySelector("select");
  const line = dialog.querySelector(".divide input");
  dialog.querySelector(".tools").prepend(slider());
  dialog.querySelector("button").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  const divide = () => stack.style.setProperty("--divider", `${line.value}%`);
  line.addEventListener("input", divide);

  let maps = [];
  let photo;
  const show = (right) => {
    const left = maps[select.value - 1];
    const layer = (image, side) => {
      const copy = image.cloneNode();
      copy.classList.add(side);
      return copy;
    };
    const under = make('<img alt="">');
    under.src = photo.src;
    stack.replaceChildren(under, ...(left ? [layer(left, "left")] : []), layer(right, left ? "right" : "whole"));
    stack.classList.toggle("divided", Boolean(left));
    dialog.querySelector(".divide").hidden = !left;
    if (left) {
      // What is right of the line belongs to the other map.
      stack.querySelector(".left").style.clipPath = "inset(0 calc(100% - var(--divider)) 0 0)";
    }
  };
  const enlarge = (example, image) => {
    photo = example.querySelector("img.photo");
    maps = [...example.querySelectorAll("img:not(.photo)")].filter((other) => other !== image);
    dialog.querySelector("h3").textContent = image.alt;
    stack.style.setProperty("--ratio", `${photo.naturalWidth} / ${photo.naturalHeight}`);
    const names = maps.map((other) => other.closest("figure").querySelector("b").textContent);
    select.replaceChildren(...["the same", ...names].map((name, index) => new Option(name, index)));
    select.parentElement.hidden = image === photo || !maps.length;
    if (image === photo) maps = [];
    select.onchange = () => show(image);
    divide();
    show(image);
    dialog.showModal();
  };

  for (const section of sections) {
    const tools = make('<div class="tools"></div>');
    tools.append(slider(), make('<span class="soft">A click on an image enlarges it.</span>'));
    section.querySelector(".examples").before(tools);
    for (const example of section.querySelectorAll(".example")) {
      example.style.setProperty("--photo", `url("${example.querySelector("img.photo").src}")`);
      for (const view of example.querySelectorAll(".view")) {
        const image = view.querySelector("img");
        const button = make(`<button type="button" class="view" aria-haspopup="dialog"></button>`);
        if (image.classList.contains("labels")) button.classList.add("over");
        button.append(image);
        button.addEventListener("click", () => enlarge(example, image));
        view.replaceWith(button);
      }
    }
  }
  cover(65);
})();
