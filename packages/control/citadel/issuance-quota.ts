const windowMs = 3_600_000;
/** Certificates for one identity in an hour: more than its replicas need, also when each restarts several times. */
const maxCertificatesPerHour = 5_000;

/** How many certificates each identity may have issued: what is issued has to be remembered until it expires. */
export class IssuanceQuota {
  readonly #now: () => number;
  readonly #counts: Map<string, number>;
  #windowEndsAt: number;

  constructor(now: () => number = Date.now) {
    this.#now = now;
    this.#counts = new Map();
    this.#windowEndsAt = 0;
  }

  /** Why another one is refused; undefined: it is counted. */
  take(identity: string): string | undefined {
    const now = this.#now();
    if (now >= this.#windowEndsAt) {
      this.#counts.clear();
      this.#windowEndsAt = now + windowMs;
    }
    const count = this.#counts.get(identity) ?? 0;
    if (count >= maxCertificatesPerHour)
      return `${identity} has been issued ${maxCertificatesPerHour} certificates within an hour; more are refused until ${new Date(this.#windowEndsAt).toISOString()}`;
    this.#counts.set(identity, count + 1);
    return undefined;
  }
}
