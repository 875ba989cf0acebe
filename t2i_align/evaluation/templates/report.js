"use strict";
(() => {
  // Tables: select a heading to sort by it, again to turn the order round.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? other : first;
      headings.forEach((one) => one.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        return sign * (numeric ? x - y : x.localeCompare(y));
      });
      table.tBodies[0].append(...rows);
    }));
  }

  // Lightbox: every model's picture of one prompt with every score; arrow keys step through the page's pairs.
  const lightbox = document.getElementById("lightbox");
  const cards = [...document.querySelectorAll(".card")];
  const pictures = lightbox.querySelector(".lightbox-pictures");
  const steps = [...lightbox.querySelectorAll(".step")];
  let current = 0;
  const element = (tag, text) => Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text });
  const describe = (picture) => {
    const figure = element("div");
    figure.append(picture.firstElementChild.cloneNode(true), element("h4", picture.dataset.model));
    const table = element("table");
    for (const [name, score] of JSON.parse(picture.dataset.scores)) {
      const row = table.insertRow();
      row.insertCell().textContent = name;
      const cell = row.insertCell();
      cell.className = "number";
      cell.textContent = score === null ? "–" : score.toFixed(3);
    }
    figure.append(table);
    return figure;
  };
  const show = (index) => {
    current = Math.min(Math.max(index, 0), cards.length - 1);
    const card = cards[current];
    document.getElementById("lightbox-prompt").textContent = card.dataset.prompt;
    document.getElementById("lightbox-place").textContent = `${current + 1} of ${cards.length} · seed ${card.dataset.seed}`;
    pictures.replaceChildren(...[...card.querySelectorAll(".picture")].map(describe));
    steps[0].disabled = current === 0;
    steps[1].disabled = current === cards.length - 1;
    if (!lightbox.open) lightbox.showModal();
  };
  cards.forEach((card, index) => card.addEventListener("click", () => show(index)));
  steps.forEach((button) => button.addEventListener("click", () => show(current + Number(button.dataset.step))));
  // The browser gives the focus back to the card that opened the dialog; the reader may have stepped to another since.
  const back = () => cards[current].focus();
  const close = () => { lightbox.close(); back(); };
  lightbox.querySelector(".close").addEventListener("click", close);
  lightbox.addEventListener("click", (event) => { if (event.target === lightbox) close(); });
  lightbox.addEventListener("close", back);  // by Escape
  lightbox.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(current + step); }
  });

  // Charts: the curves' values under the pointer.
  const readout = document.getElementById("readout");
  for (const chart of document.querySelectorAll("svg.chart")) {
    const data = JSON.parse(chart.dataset.readout);
    const cursor = chart.querySelector(".cursor");
    const hide = () => { readout.hidden = true; cursor.setAttribute("hidden", "hidden"); };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const at = (event.clientX - box.left) / box.width * data.width;
      const nearest = data.series.map((one) => {
        const index = one.at.reduce((best, x, i) => Math.abs(x - at) < Math.abs(one.at[best] - at) ? i : best, 0);
        return { name: one.name, step: one.step[index], value: one.value[index], at: one.at[index] };
      });
      cursor.removeAttribute("hidden");
      cursor.setAttribute("x1", nearest[0].at);
      cursor.setAttribute("x2", nearest[0].at);
      readout.textContent = nearest.map((one) => `step ${one.step}  ${one.name} ${one.value}`).join("\n");
      readout.hidden = false;
      readout.style.left = `${Math.min(event.clientX + 14, innerWidth - readout.offsetWidth - 8)}px`;
      readout.style.top = `${event.clientY + 14}px`;
    });
    chart.addEventListener("pointerleave", hide);
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {  // no clipboard for files in some browsers: select it instead
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
    });
  }
})();
