// Shows the value at the nearest point of a curve, and makes tables sortable. Without
// JavaScript, the points of the curves have titles, and the tables keep their order.
document.querySelectorAll(".image svg").forEach((svg) => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  svg.parentElement.append(tip);
  const points = [...svg.querySelectorAll("circle")].map((circle) => {
    const text = circle.firstElementChild.textContent;
    circle.firstElementChild.remove(); // otherwise, the browser shows it as well
    return { circle, text, x: +circle.dataset.x, y: +circle.dataset.y };
  });
  const clear = () => {
    tip.hidden = true;
    points.forEach((point) => point.circle.classList.remove("near"));
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const far = (point) =>
      Math.hypot(point.x * box.width - event.clientX + box.left,
        point.y * box.height - event.clientY + box.top);
    const nearest = points.reduce((a, b) => (far(b) < far(a) ? b : a));
    clear();
    if (far(nearest) > 30) return;
    nearest.circle.classList.add("near");
    tip.textContent = nearest.text;
    tip.hidden = false;
    const half = tip.offsetWidth / 2 / box.width;
    tip.style.left = `${100 * Math.min(Math.max(nearest.x, half), 1 - half)}%`;
    tip.style.top = `${100 * Math.max(nearest.y, 0.12)}%`;
  });
  svg.addEventListener("pointerleave", clear);
});
document.querySelectorAll("table.sortable").forEach((table) => {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((one) => one.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].textContent.replaceAll(",", "");
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        const both = Number(x) - Number(y);
        return Number.isNaN(both) ? x.localeCompare(y) : both;
      };
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tBodies[0].append(...(up ? rows : rows.reverse()));
    });
  });
});
