import { getRandomValues } from 'node:crypto';

/**
 * Request ids in the form of a version 4 UUID (RFC 9562 section 5.4). They name requests, they guard nothing: a fast generator, seeded by
 * the system's, makes them (xorshift128, Marsaglia 2003).
 */
const state = getRandomValues(new Uint32Array(4));
state[0]! |= 1; // all zeros would stay zeros

const hex = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, '0'));

function next(): number {
  let t = state[3]!;
  const s = state[0]!;
  state[3] = state[2]!;
  state[2] = state[1]!;
  state[1] = s;
  t ^= t << 11;
  t ^= t >>> 8;
  state[0] = t ^ s ^ (s >>> 19);
  return state[0]!;
}

export function requestId(): string {
  const a = next();
  const b = next();
  const c = next();
  const d = next();
  return (
    hex[a & 255]! +
    hex[(a >>> 8) & 255]! +
    hex[(a >>> 16) & 255]! +
    hex[a >>> 24]! +
    '-' +
    hex[b & 255]! +
    hex[(b >>> 8) & 255]! +
    '-' +
    hex[((b >>> 16) & 0x0f) | 0x40]! +
    hex[b >>> 24]! +
    '-' +
    hex[(c & 0x3f) | 0x80]! +
    hex[(c >>> 8) & 255]! +
    '-' +
    hex[(c >>> 16) & 255]! +
    hex[c >>> 24]! +
    hex[d & 255]! +
    hex[(d >>> 8) & 255]! +
    hex[(d >>> 16) & 255]! +
    hex[d >>> 24]!
  );
}
