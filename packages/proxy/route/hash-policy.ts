import { MizzenError } from '@mizzen/common';
import { durationToMs } from '@mizzen/envoy-api';
import { type RouteAction_HashPolicy, RouteAction_HashPolicy_HeaderSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { cookieValue } from '../message/cookie.ts';
import { utf8Bytes } from '../message/header-bytes.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import { combineHashes, hash64 } from '../upstream/balancing/hash.ts';
import { refuseUnsupported } from '../xds/supported-fields.ts';
import { queryParameter } from './query.ts';

/** One thing about a request that decides where it goes (route_components.proto `HashPolicy`). */
interface HashPolicy {
  /** undefined: the request has nothing of the kind. `setCookie` is given one that the client shall have from now on. */
  hash(head: RequestHead, client: ConnectionInfo, setCookie: (value: string) => void): bigint | undefined;
  /** When it has found something, those behind it are not asked. */
  readonly isTerminal: boolean;
}

/** What a route hashes of its requests, for clusters that choose by hash. */
export class RequestHash {
  readonly #policies: readonly HashPolicy[];

  constructor(policies: readonly HashPolicy[]) {
    this.#policies = policies;
  }

  /** undefined: nothing; an endpoint is then chosen by chance. */
  of(head: RequestHead, client: ConnectionInfo, setCookie: (value: string) => void): bigint | undefined {
    let hash: bigint | undefined;
    for (const policy of this.#policies) {
      const next = policy.hash(head, client, setCookie);
      if (next !== undefined) hash = combineHashes(hash, next);
      if (policy.isTerminal && hash !== undefined) break;
    }
    return hash;
  }
}

export function compileRequestHash(policies: readonly RouteAction_HashPolicy[], place: string): RequestHash | undefined {
  return policies.length === 0 ? undefined : new RequestHash(policies.map((policy) => compilePolicy(policy, place)));
}

function compilePolicy({ policySpecifier: spec, terminal }: RouteAction_HashPolicy, place: string): HashPolicy {
  switch (spec.case) {
    case 'header': {
      refuseUnsupported(RouteAction_HashPolicy_HeaderSchema, spec.value, new Set(['headerName']), `${place}, hash_policy`);
      const name = spec.value.headerName.toLowerCase();
      return { isTerminal: terminal, hash: (head) => hashHeader(head, name) };
    }
    case 'cookie': {
      const { name, ttl, path, attributes } = spec.value;
      const ttlMs = durationToMs(ttl);
      for (const text of [name, path, ...attributes.flatMap((attribute) => [attribute.name, attribute.value])])
        if (/[\x00-\x1f\x7f;]/.test(text)) throw new MizzenError('invalid-route', `${place}, hash_policy: ${JSON.stringify(text)} cannot be part of a cookie`);
      const rest = [
        ...(ttlMs === undefined || ttlMs === 0 ? [] : [`Max-Age=${Math.floor(ttlMs / 1000)}`]),
        ...(path === '' ? [] : [`Path=${path}`]),
        ...attributes.map((attribute) => (attribute.value === '' ? attribute.name : `${attribute.name}=${attribute.value}`)),
        'HttpOnly',
      ].join('; ');
      return {
        isTerminal: terminal,
        hash(head, client, setCookie) {
          let value = cookieValue(head.headers, name);
          if (value === undefined || value === '') {
            // Without a lifetime, none is made: the application's own is meant.
            if (ttlMs === undefined) return undefined;
            value = hash64(`${addressText(client.remoteAddress, client.remotePort)}${addressText(client.localAddress, client.localPort)}`)
              .toString(16)
              .padStart(16, '0');
            setCookie(utf8Bytes(`${name}="${value}"; ${rest}`));
          }
          return hash64(value);
        },
      };
    }
    case 'connectionProperties': {
      const { sourceIp } = spec.value;
      return { isTerminal: terminal, hash: (_head, client) => (sourceIp && client.remoteAddress !== '' ? hash64(client.remoteAddress) : undefined) };
    }
    case 'queryParameter': {
      const { name } = spec.value;
      return {
        isTerminal: terminal,
        hash(head) {
          const value = queryParameter(head.target, name);
          return value === undefined ? undefined : hash64(value);
        },
      };
    }
    default:
      throw new MizzenError('unsupported-route', `${place}: a hash policy of type ${spec.case ?? '(none)'} is not supported`);
  }
}

function hashHeader(head: RequestHead, name: string): bigint | undefined {
  if (name === ':path') return hash64(head.target);
  if (name === ':authority') return hash64(head.authority);
  if (name === ':method') return hash64(head.method);
  const values = head.headers.getAll(name);
  // In which order a client repeats a header shall not matter.
  return values.length === 0 ? undefined : values.sort().reduce((seed, value) => hash64(value, seed), 0n);
}

const addressText = (address: string, port: number) => (address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`);
