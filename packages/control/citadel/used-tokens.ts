import { MizzenError, messageOf } from '@mizzen/common';
import { readPrivateFile, writePrivateFile } from './private-file.ts';

/** Which tokens that are good once have been used, until they would have expired anyway. Kept in a file: a restart makes none of them good again. */
export class UsedTokens {
  readonly #path: string;
  readonly #now: () => number;
  readonly #ends: Map<string, number>;

  constructor(path: string, now: () => number) {
    this.#path = path;
    this.#now = now;
    try {
      this.#ends = new Map(Object.entries(JSON.parse(readPrivateFile(path) ?? '{}') as Record<string, number>));
    } catch (error) {
      throw new MizzenError(
        'unreadable-file',
        `which tokens have been used cannot be read (${messageOf(error)}). Remove it once none is out that is good once.`,
        path,
      );
    }
  }

  /** False: it has been used. `endsAt`: seconds since 1970. Throws MizzenError, with the token still good, when it cannot be remembered. */
  use(id: string, endsAt: number): boolean {
    if (this.#ends.has(id)) return false;
    const now = this.#now() / 1000;
    for (const [other, end] of this.#ends) if (end < now) this.#ends.delete(other);
    const ends = new Map(this.#ends).set(id, endsAt);
    try {
      writePrivateFile(this.#path, JSON.stringify(Object.fromEntries(ends)));
    } catch (error) {
      throw new MizzenError(
        'token-not-remembered',
        `the control plane cannot remember that the token is used (${messageOf(error)}), and so does not accept it. Make space on the disk of ${this.#path}; the token stays good`,
      );
    }
    this.#ends.set(id, endsAt);
    return true;
  }
}
