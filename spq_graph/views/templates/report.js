"use strict";
// Conveniences: the page says all of it without them. Text only ever goes in as text.
(() => {
  const table = document.querySelector(".sites");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const NUMBERS = new Set(heads.flatMap((head, i) => (head.classList.contains("n") ? [i] : [])));

  // ------------------------------------------------------------------------------------------------ sort
  const valueAt = (row, i) => {
    const text = row.cells[i].textContent.trim();
    if (!NUMBERS.has(i)) return text;
    const number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? -Infinity : number;
  };
  const order = document.getElementById("order");
  const sortBy = (i, descending) => {
    const sign = descending ? -1 : 1;
    const keyed = rows.map((row, place) => [i < 0 ? 0 : valueAt(row, i), place, row]);
    keyed.sort((a, b) => (a[0] < b[0] ? -sign : a[0] > b[0] ? sign : a[1] - b[1]));
    body.replaceChildren(...keyed.map((k) => k[2]));
    heads.forEach((head, at) => {
      if (at === i) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    order.value = i < 0 ? "" : `${i}${descending ? "d" : "a"}`;
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sortBy(i, now ? now === "ascending" : NUMBERS.has(i));
    });
    head.append(button);
    for (const [letter, words] of NUMBERS.has(i) ? [["d", "largest first"], ["a", "smallest first"]] : [["a", "A to Z"]])
      order.append(new Option(`${button.textContent}, ${words}`, `${i}${letter}`));
  });
  order.addEventListener("change", () => sortBy(order.value ? parseInt(order.value, 10) : -1, order.value.endsWith("d")));

  // ------------------------------------------------------------------------------------------------ filter
  const bar = document.getElementById("filter");
  const counted = document.getElementById("shown");
  const first = (cell) => (cell.firstElementChild ?? cell).textContent.trim();
  const filter = () => {
    const wanted = bar.elements.find.value.trim().toLowerCase();
    const chosen = ["role", "precision", "reason"].map((name) => bar.elements[name]);
    let left = 0;
    for (const row of rows) {
      const fits =
        row.cells[0].textContent.toLowerCase().includes(wanted) &&
        chosen.every((s) => !s.value || first(row.cells[+s.dataset.column]) === s.value);
      row.hidden = !fits;
      left += fits;
    }
    counted.value = `${left} of ${rows.length} sites`;
  };
  bar.addEventListener("input", filter);
  bar.addEventListener("reset", () => setTimeout(() => (filter(), sortBy(-1, false))));
  bar.addEventListener("submit", (event) => event.preventDefault());
  bar.hidden = false;
  counted.value = `${rows.length} of ${rows.length} sites`;

  // ------------------------------------------------------------------------------------------------ links
  const follow = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (!target) return;
    if (target.type === "radio") target.checked = true;
    else if (target.hidden) {
      bar.reset();
      setTimeout(() => target.scrollIntoView({ block: "center" }));
    }
  };
  addEventListener("hashchange", follow);
  follow();

  // ------------------------------------------------------------------------------------------------ spike map
  const map = document.querySelector(".map");
  if (!map) return;
  const told = document.getElementById("cell");
  const show = (link) => {
    const row = document.getElementById(link.hash.slice(1));
    if (!row) return;
    const name = document.createElement("b");
    name.textContent = row.cells[0].firstElementChild.textContent;
    const facts = heads.slice(1).map((head, i) => [head.textContent, [...row.cells[i + 1].childNodes].map((n) => n.textContent.trim()).join(" ").trim()]);
    const words = facts.filter(([what, value]) => value !== "–" && what !== "Role").map(([what, value]) => {
      const one = document.createElement("span");
      const figure = document.createElement("b");
      figure.textContent = value;
      one.append(`${what} `, figure);
      return one;
    });
    told.replaceChildren(name, ...words);
    if (link.dataset.of) told.append(`highest of ${link.dataset.of} sites here`);
    map.querySelector("[data-shown]")?.removeAttribute("data-shown");
    link.dataset.shown = "";
    told.hidden = false;
  };
  let grid;
  let stop;
  const stopAt = (link) => {
    if (!grid) {
      grid = [...map.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((cell) => cell.querySelector("a")));
      grid.flat().forEach((other) => other && (other.tabIndex = -1)); // one stop; arrows go on from there
    }
    if (stop) stop.tabIndex = -1;
    stop = link;
    stop.tabIndex = 0;
  };
  for (const kind of ["mouseover", "focusin"])
    map.addEventListener(kind, (event) => {
      const link = event.target.closest("td")?.querySelector("a");
      if (link) show(link);
      if (link && kind === "focusin") stopAt(link);
    });
  map.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (link && event.detail > 0) {
      event.preventDefault(); // a tap shows, as hovering does; Enter follows the link
      link.focus();
      show(link);
    }
  });
  map.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const link = event.target.closest("a");
    if (!step || !link) return;
    event.preventDefault();
    let y = grid.findIndex((line) => line.includes(link));
    let x = grid[y].indexOf(link);
    do {
      y += step[0];
      x += step[1];
    } while (grid[y] && x >= 0 && x < grid[y].length && !grid[y][x]);
    const next = grid[y]?.[x];
    if (next) next.focus();
  });
})();
