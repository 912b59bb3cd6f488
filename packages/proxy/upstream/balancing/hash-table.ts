import type { Endpoint } from '../endpoint.ts';

/** Finds the endpoint of a hash: the same one as long as it is there, and few others move when one comes or goes. */
export interface HashTable {
  /** `attempt` above 0: another endpoint than the attempts before have given, if there is one near. undefined: there are no endpoints. */
  pick(hash: bigint, attempt: number): Endpoint | undefined;
}

/** An endpoint and its share of the load; the shares add up to 1. */
export interface Share {
  readonly endpoint: Endpoint;
  readonly share: number;
}

/** `previous`: the table that the new one takes the place of, if there is one. */
export type MakeHashTable = (shares: readonly Share[], previous?: HashTable) => HashTable;
