const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll(".zoom")) button.addEventListener("click", () => {
  const shown = dialog.querySelector("img"), source = button.querySelector("img");
  shown.src = source.src; shown.alt = source.alt;
  dialog.querySelector("p").textContent = button.dataset.caption;
  dialog.showModal();
});
dialog.addEventListener("click", () => dialog.close());
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre");
  try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; }
  catch { getSelection().selectAllChildren(text); button.textContent = "Press Ctrl+C"; }
  setTimeout(() => { button.textContent = "Copy"; }, 1800);
});