/**
 * The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B). The code is canonical: symbols are numbered by the length of their
 * codes, then by their value, so that the lengths say everything.
 */
const lengths: readonly number[] = [
  ...[13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28],
  ...[6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10],
  ...[13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6],
  ...[15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28],
  ...[20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24],
  ...[22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23],
  ...[26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27],
  ...[20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26],
];
/** EOS: never sent as a symbol; the first bits of its code, all ones, fill up the last byte. */
const endOfString = 256;
const endOfStringLength = 30;

const codes = new Uint32Array(257);
assignCodes();

function assignCodes(): void {
  const all = [...lengths, endOfStringLength];
  const order = all.map((_, symbol) => symbol).sort((a, b) => all[a]! - all[b]! || a - b);
  let code = 0;
  let length = all[order[0]!]!;
  for (const symbol of order) {
    code <<= all[symbol]! - length;
    length = all[symbol]!;
    codes[symbol] = code++;
  }
}

/**
 * Decoding goes four bits at a time through a machine whose states are the inner nodes of the code's tree. An entry is the next state, and,
 * in the bits above it, the symbol that was completed on the way, if one was: no symbol is shorter than five bits, so at most one is.
 */
const failed = 0xffff;
const noSymbol = 0x100;
const transitions = new Uint32Array(257 * 16);
/** Whether a string may end in this state: at most seven bits of a symbol have begun, and they are all ones. */
const mayEnd = new Uint8Array(257);
buildMachine();

function buildMachine(): void {
  // Inner nodes are numbered as they are found; leaves are -1 - symbol.
  const children: [number, number][] = [[0, 0]];
  for (let symbol = 0; symbol <= endOfString; symbol++) {
    const length = lengths[symbol] ?? endOfStringLength;
    let node = 0;
    for (let bit = length - 1; bit > 0; bit--) {
      const side = (codes[symbol]! >>> bit) & 1;
      if (children[node]![side] === 0) children[node]![side] = children.push([0, 0]) - 1;
      node = children[node]![side]!;
    }
    children[node]![codes[symbol]! & 1] = -1 - symbol;
  }
  for (let state = 0; state < children.length; state++)
    for (let nibble = 0; nibble < 16; nibble++) {
      let node = state;
      let symbol = noSymbol;
      for (let bit = 3; bit >= 0; bit--) {
        const next = children[node]![(nibble >> bit) & 1]!;
        if (next >= 0) node = next;
        else if (next === -1 - endOfString) node = failed;
        else {
          symbol = -1 - next;
          node = 0;
        }
        if (node === failed) break;
      }
      transitions[state * 16 + nibble] = (symbol << 16) | node;
    }
  let node = 0;
  for (let bits = 0; bits <= 7; bits++) {
    mayEnd[node] = 1;
    node = children[node]![1]!;
  }
}

let scratch = Buffer.allocUnsafe(4096);

/** The text that `source` holds from `start` to `end`; undefined when it is no such code (RFC 7541 section 5.2: padding, EOS). */
export function decodeHuffman(source: Buffer, start: number, end: number): string | undefined {
  const most = Math.ceil(((end - start) * 8) / 5);
  if (scratch.length < most) scratch = Buffer.allocUnsafe(most * 2);
  let state = 0;
  let length = 0;
  for (let at = start; at < end; at++) {
    const byte = source[at]!;
    for (let entry = transitions[state * 16 + (byte >> 4)]!, half = 0; ; entry = transitions[state * 16 + (byte & 15)]!, half = 1) {
      state = entry & 0xffff;
      if (state === failed) return undefined;
      const symbol = entry >>> 16;
      if (symbol !== noSymbol) scratch[length++] = symbol;
      if (half === 1) break;
    }
  }
  return mayEnd[state] === 1 ? scratch.toString('latin1', 0, length) : undefined;
}

/** How many bytes `text` (latin1) takes in this code. */
export function huffmanLength(text: string): number {
  let bits = 0;
  for (let i = 0; i < text.length; i++) bits += lengths[text.charCodeAt(i) & 0xff]!;
  return (bits + 7) >> 3;
}

/** Writes `text` at `at`; there must be room. Returns where it ends. */
export function encodeHuffman(text: string, target: Buffer, at: number): number {
  let held = 0; // bits that do not make a byte yet, fewer than eight
  let count = 0;
  for (let i = 0; i < text.length; i++) {
    const symbol = text.charCodeAt(i) & 0xff;
    const length = lengths[symbol]!;
    const code = codes[symbol]!;
    for (let left = length; left > 0; ) {
      const take = Math.min(8 - count, left);
      held = (held << take) | ((code >>> (left - take)) & ((1 << take) - 1));
      count += take;
      left -= take;
      if (count === 8) {
        target[at++] = held;
        held = 0;
        count = 0;
      }
    }
  }
  if (count > 0) target[at++] = (held << (8 - count)) | ((1 << (8 - count)) - 1);
  return at;
}
