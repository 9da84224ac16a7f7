// Makes wide tables, which scroll in their own boxes, reachable with the keyboard.
window.addEventListener("load", () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    box.tabIndex = 0;
  }
});
