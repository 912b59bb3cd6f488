import { Code, ConnectError } from '@connectrpc/connect';
import { type Identity, parseSpiffeUri, spiffeUri } from './spiffe-identity.ts';

export interface ForwardingRules {
  readonly trustDomain: string;
  /** Service accounts (`namespace/name`) that may ask for identities of others: control planes that pass requests on, agents that find out who somebody is. */
  readonly forwarders: ReadonlySet<string>;
}

/** Whom something is issued for: the caller, or whom it names and may ask for. `wanted`: a SPIFFE id; empty or undefined: the caller. Throws ConnectError. */
export function identityWanted(wanted: unknown, caller: Identity, { forwarders, trustDomain }: ForwardingRules): Identity {
  if (wanted === undefined || wanted === '' || wanted === spiffeUri(caller)) return caller;
  if (!forwarders.has(`${caller.namespace}/${caller.serviceAccount}`))
    throw new ConnectError(`${spiffeUri(caller)} may not ask for identities of others (mizzen control --ca-forwarder)`, Code.PermissionDenied);
  const identity = typeof wanted === 'string' ? parseSpiffeUri(wanted) : undefined;
  if (identity?.trustDomain !== trustDomain)
    throw new ConnectError(`${JSON.stringify(wanted)} is no identity of trust domain ${trustDomain}`, Code.InvalidArgument);
  return identity;
}

/** For the log. */
export function forwarderOf(caller: Identity, identity: Identity): { readonly forwarder?: string } {
  return identity === caller ? {} : { forwarder: spiffeUri(caller) };
}
