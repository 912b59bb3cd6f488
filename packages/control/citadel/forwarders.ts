import { Code, ConnectError } from '@connectrpc/connect';
import { MizzenError } from '@mizzen/common';
import { type Identity, parseSpiffeUri, spiffeUri } from './spiffe-identity.ts';

/** Who may ask for identities of others (control planes that pass requests on, agents that find out who somebody is), and for which. */
export class Forwarders {
  /** By `namespace/account`; undefined: for all of the trust domain. */
  readonly #allowed: Map<string, ReadonlySet<string> | undefined>;

  /** Each `namespace/account`, or `namespace/account=namespace/account,namespace/*...` for those alone. Throws MizzenError. */
  constructor(rules: readonly string[]) {
    this.#allowed = new Map();
    for (const rule of rules) {
      const [forwarder, list] = rule.split('=', 2) as [string, string | undefined];
      const others = list?.split(',');
      if (!isAccount(forwarder) || forwarder.endsWith('/*') || others?.some((other) => !isAccount(other)))
        throw new MizzenError('invalid-option', `--ca-forwarder ${rule}: write NAMESPACE/ACCOUNT, or NAMESPACE/ACCOUNT=NAMESPACE/ACCOUNT,NAMESPACE/*...`);
      const before = this.#allowed.get(forwarder);
      const isForAll = others === undefined || (this.#allowed.has(forwarder) && before === undefined);
      this.#allowed.set(forwarder, isForAll ? undefined : new Set([...(before ?? []), ...others]));
    }
  }

  /** As `namespace/account`. */
  accounts(): string[] {
    return [...this.#allowed.keys()];
  }

  /** Why a caller may not ask for somebody else's identity; undefined: it may. */
  refusal(caller: Identity, wanted: Identity): string | undefined {
    const forwarder = `${caller.namespace}/${caller.serviceAccount}`;
    if (!this.#allowed.has(forwarder)) return `${spiffeUri(caller)} may not ask for identities of others (mizzen control --ca-forwarder)`;
    const allowed = this.#allowed.get(forwarder);
    if (allowed === undefined || allowed.has(`${wanted.namespace}/${wanted.serviceAccount}`) || allowed.has(`${wanted.namespace}/*`)) return undefined;
    return `${spiffeUri(caller)} may not ask for ${spiffeUri(wanted)}, but for ${[...allowed].join(', ')} (mizzen control --ca-forwarder)`;
  }
}

const isAccount = (text: string) => /^[a-z0-9-]+\/([a-z0-9.-]+|\*)$/.test(text);

export interface ForwardingRules {
  readonly trustDomain: string;
  readonly forwarders: Forwarders;
}

/** Whom something is issued for: the caller, or whom it names and may ask for. `wanted`: a SPIFFE id; empty or undefined: the caller. Throws ConnectError. */
export function identityWanted(wanted: unknown, caller: Identity, { forwarders, trustDomain }: ForwardingRules): Identity {
  if (wanted === undefined || wanted === '' || wanted === spiffeUri(caller)) return caller;
  const identity = typeof wanted === 'string' ? parseSpiffeUri(wanted) : undefined;
  if (identity?.trustDomain !== trustDomain)
    throw new ConnectError(`${JSON.stringify(wanted)} is no identity of trust domain ${trustDomain}`, Code.InvalidArgument);
  const refusal = forwarders.refusal(caller, identity);
  if (refusal !== undefined) throw new ConnectError(refusal, Code.PermissionDenied);
  return identity;
}

/** For the log. */
export function forwarderOf(caller: Identity, identity: Identity): { readonly forwarder?: string } {
  return identity === caller ? {} : { forwarder: spiffeUri(caller) };
}
