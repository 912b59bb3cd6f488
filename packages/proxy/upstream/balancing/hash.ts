import xxhash from 'xxhash-wasm';

const { h64 } = await xxhash();

/** xxHash64, which Envoy uses for requests and hosts alike: both choose the same host for the same request. */
export function hash64(text: string, seed = 0n): bigint {
  return h64(text, seed);
}

/** Several hashes of one request become one (envoy hash_policy: rotated by one bit, so that their order counts). */
export function combineHashes(before: bigint | undefined, next: bigint): bigint {
  return before === undefined ? next : (((before << 1n) | (before >> 63n)) ^ next) & 0xffff_ffff_ffff_ffffn;
}
