/** One element of DER (X.690 section 8): its tag, and where it lies. */
export interface DerElement {
  readonly tag: number;
  /** The whole element. */
  readonly bytes: Buffer;
  readonly content: Buffer;
}

/** The elements that a constructed one holds. Throws Error where the bytes are no DER. */
export function derElements(content: Buffer): DerElement[] {
  const elements: DerElement[] = [];
  for (let at = 0; at < content.length; ) {
    const tag = content[at]!;
    let length = content[at + 1] ?? Number.NaN;
    let start = at + 2;
    if (length >= 0x80) {
      const size = length & 0x7f;
      if (size === 0 || size > 4 || start + size > content.length) throw new Error('a length in it is wrong');
      length = content.readUIntBE(start, size);
      start += size;
    }
    const end = start + length;
    if (!(end <= content.length)) throw new Error('it ends too early');
    elements.push({ tag, bytes: content.subarray(at, end), content: content.subarray(start, end) });
    at = end;
  }
  return elements;
}

export function derElement(tag: number, ...parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  const { length } = content;
  if (length < 0x80) return Buffer.concat([Buffer.of(tag, length), content]);
  const size = Buffer.alloc(4);
  size.writeUInt32BE(length);
  const significant = size.subarray(size.findIndex((byte) => byte !== 0));
  return Buffer.concat([Buffer.of(tag, 0x80 | significant.length), significant, content]);
}
