import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The coordinator that `npm run dev` and `npm run preview` ask.
const coordinator = process.env.FIRMESH_URL ?? "http://127.0.0.1:8640";
const proxy = { "/api": { target: coordinator, changeOrigin: true } };

export default defineConfig({
  plugins: [react()],
  server: { proxy },
  // The headers that the coordinator sends (`src/http/dashboard.rs`), so that a page that breaks under them breaks here.
  preview: {
    proxy,
    headers: {
      "Content-Security-Policy":
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; " +
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    },
  },
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: { polyfill: false } },
});
