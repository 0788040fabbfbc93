// Server-Sent Events out of a byte stream: `EventSource` can send no `Authorization`.

export interface SseMessage { id: string | null; event: string; data: string }

/** Takes text as it comes, answers whole messages. */
export class SseParser {
  private rest = "";

  push(text: string): SseMessage[] {
    this.rest += text;
    const blocks = this.rest.split(/\r\n\r\n|\n\n|\r\r/);
    this.rest = blocks.pop() ?? "";
    return blocks.map(parse).filter((message) => message !== null);
  }
}

function parse(block: string): SseMessage | null {
  let id: string | null = null;
  let event = "message";
  const data: string[] = [];
  for (const line of block.split(/\r\n|\n|\r/)) {
    if (line.startsWith(":")) continue;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "id") id = value;
    else if (field === "event") event = value;
    else if (field === "data") data.push(value);
  }
  return data.length > 0 ? { id, event, data: data.join("\n") } : null;
}

/** Milliseconds before the next try: doubles to 15 s; the spread keeps many tabs from coming back at once. */
export function pause(tries: number, random = Math.random()): number {
  return Math.min(15_000, 500 * 2 ** Math.min(tries, 6)) * (0.75 + random / 2);
}
