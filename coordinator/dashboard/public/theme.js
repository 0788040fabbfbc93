// Before the first paint, so that nobody who works in the dark sees a white flash.
try {
  const theme = localStorage.getItem("firmesh-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // No storage: the system's theme.
}
