import { lookup as systemLookup } from 'node:dns/promises';
import { errorBoundary } from '@mizzen/common';

const boundary = errorBoundary('dns.refresh');

/** All addresses of a name; rejects when there are none. */
export type Lookup = (
  name: string,
  options: { readonly all: true; readonly family: 0 | 4 | 6 },
) => Promise<readonly { readonly address: string; readonly family: number }[]>;

export interface DnsSettings {
  readonly refreshMs: number;
  /** cluster.proto `dns_lookup_family`; `preferV4`: IPv6 only where there is no IPv4. */
  readonly family: 'v4' | 'v6' | 'all' | 'preferV4';
}

/** The addresses behind names, asked for again and again (cluster.proto `STRICT_DNS`). What cannot be resolved keeps the addresses that it had. */
export class DnsAddresses {
  readonly #names: readonly string[];
  readonly #settings: DnsSettings;
  readonly #onChange: (addresses: ReadonlyMap<string, readonly string[]>) => void;
  readonly #lookup: Lookup;
  readonly #addresses: Map<string, readonly string[]>;
  #timer: NodeJS.Timeout | undefined;
  #isClosed: boolean;

  constructor(
    names: readonly string[],
    settings: DnsSettings,
    onChange: (addresses: ReadonlyMap<string, readonly string[]>) => void,
    lookup: Lookup = systemLookup as Lookup,
  ) {
    this.#names = names;
    this.#settings = settings;
    this.#onChange = onChange;
    this.#lookup = lookup;
    this.#addresses = new Map();
    this.#timer = undefined;
    this.#isClosed = false;
    this.#next();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  async #refresh(): Promise<void> {
    let hasChanged = false;
    await Promise.all(
      this.#names.map(async (name) => {
        const found = await this.#resolve(name);
        if (found === undefined || found.join() === this.#addresses.get(name)?.join()) return;
        this.#addresses.set(name, found);
        hasChanged = true;
      }),
    );
    if (this.#isClosed) return;
    if (hasChanged) this.#onChange(this.#addresses);
  }

  /** Resolves the names now, and again after the pause, whatever the outcome. */
  #next(): void {
    const again = () => {
      if (!this.#isClosed) this.#timer = boundary.after(this.#settings.refreshMs, () => this.#next(), again).unref();
    };
    boundary.start(() => this.#refresh().then(again), again);
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
