import { Resolver, lookup as systemLookup } from 'node:dns/promises';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('dns.refresh');

/** All addresses of a name; rejects when there are none. */
export type Lookup = (
  name: string,
  options: { readonly all: true; readonly family: 0 | 4 | 6 },
) => Promise<readonly { readonly address: string; readonly family: number }[]>;

/** The shortest TTL of a name's records in seconds; undefined when its servers do not say. */
export type TtlOf = (name: string, family: DnsSettings['family']) => Promise<number | undefined>;

export interface DnsSettings {
  /** cluster.proto `dns_refresh_rate`: without a TTL. */
  readonly refreshMs: number;
  /** cluster.proto `respect_dns_ttl`: names are resolved again when their records have expired. */
  readonly respectsTtl: boolean;
  /** cluster.proto `dns_lookup_family`; `preferV4`: IPv6 only where there is no IPv4. */
  readonly family: 'v4' | 'v6' | 'all' | 'preferV4';
}

/** Names are resolved at most once, and with a TTL at least once, in these times. */
export const minDnsRefreshMs = 1_000;
const maxDnsRefreshMs = 3_600_000;

const resolver = new Resolver({ timeout: 2_000, tries: 1 });

/** The system's resolver says addresses, also those of /etc/hosts, without their TTL: a query beside it says that. */
async function systemTtlOf(name: string, family: DnsSettings['family']): Promise<number | undefined> {
  const asked = [...(family === 'v6' ? [] : [resolver.resolve4(name, { ttl: true })]), ...(family === 'v4' ? [] : [resolver.resolve6(name, { ttl: true })])];
  const answers = await Promise.allSettled(asked);
  const ttls = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value.map(({ ttl }) => ttl) : []));
  return ttls.length === 0 ? undefined : Math.min(...ttls);
}

/** The addresses behind names, asked for again and again (cluster.proto `STRICT_DNS`). What cannot be resolved keeps the addresses that it had. */
export class DnsAddresses {
  readonly #names: readonly string[];
  readonly #settings: DnsSettings;
  readonly #onChange: (addresses: ReadonlyMap<string, readonly string[]>) => void;
  readonly #lookup: Lookup;
  readonly #ttlOf: TtlOf;
  readonly #addresses: Map<string, readonly string[]>;
  /** There are addresses that `onChange` has not accepted yet. */
  #hasChanged: boolean;
  #timer: NodeJS.Timeout | undefined;
  #isClosed: boolean;
  /** Until the names are resolved again. */
  #waitMs: number;

  constructor(
    names: readonly string[],
    settings: DnsSettings,
    onChange: (addresses: ReadonlyMap<string, readonly string[]>) => void,
    lookup: Lookup = systemLookup as Lookup,
    ttlOf: TtlOf = systemTtlOf,
  ) {
    this.#names = names;
    this.#settings = settings;
    this.#onChange = onChange;
    this.#lookup = lookup;
    this.#ttlOf = ttlOf;
    this.#addresses = new Map();
    this.#hasChanged = false;
    this.#timer = undefined;
    this.#isClosed = false;
    this.#waitMs = settings.refreshMs;
    this.#next();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  async #refresh(): Promise<void> {
    let waitMs = Number.POSITIVE_INFINITY;
    await Promise.all(
      this.#names.map(async (name) => {
        const [found, refreshMs] = await Promise.all([this.#resolve(name), this.#refreshMs(name)]);
        waitMs = Math.min(waitMs, found === undefined ? this.#settings.refreshMs : refreshMs);
        if (found === undefined || found.join() === this.#addresses.get(name)?.join()) return;
        this.#addresses.set(name, found);
        this.#hasChanged = true;
      }),
    );
    if (this.#isClosed) return;
    this.#waitMs = waitMs;
    if (!this.#hasChanged) return;
    this.#onChange(this.#addresses);
    this.#hasChanged = false;
  }

  /** Resolves the names now, and again after the pause, whatever the outcome. */
  #next(): void {
    const again = () => {
      if (!this.#isClosed) this.#timer = boundary.after(this.#waitMs, () => this.#next(), again).unref();
    };
    boundary.start(() => this.#refresh().then(again), again);
  }

  /** A TTL of 0 says nothing about when to ask again. */
  async #refreshMs(name: string): Promise<number> {
    const { respectsTtl, refreshMs, family } = this.#settings;
    const ttl = respectsTtl ? await this.#ttlOf(name, family).catch(() => undefined) : undefined;
    return ttl === undefined || ttl === 0 ? refreshMs : Math.min(maxDnsRefreshMs, Math.max(minDnsRefreshMs, 1_000 * ttl));
  }

  async #resolve(name: string): Promise<string[] | undefined> {
    const { family } = this.#settings;
    try {
      const found = await this.#lookup(name, { all: true, family: family === 'v4' ? 4 : family === 'v6' ? 6 : 0 });
      const v4 = found.filter((one) => one.family === 4);
      const used = family === 'preferV4' && v4.length > 0 ? v4 : found;
      return used.length === 0 ? undefined : [...new Set(used.map(({ address }) => address))].sort();
    } catch {
      return undefined;
    }
  }
}
