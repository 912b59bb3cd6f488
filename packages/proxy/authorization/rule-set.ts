import { MizzenError } from '@mizzen/common';
import { type RBAC, RBAC_Action } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import { pathViews } from '../route/path-views.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';
import { compilePermission, compilePrincipal } from './compile-conditions.ts';
import { and, type Node, or } from './node.ts';
import { onPath, type Subject } from './subject.ts';

interface Policy {
  readonly name: string;
  readonly condition: Node;
}

/** So many peers' rules are kept sorted out. */
const maxPeers = 256;

/**
 * The policies of one action (envoy rbac.proto `RBAC`), evaluated in the order of their names as Envoy does. Which of them a peer can ever meet is found
 * out once for that peer; of those, the ones for paths are found by the path. So a thousand rules cost hardly more than the few that matter.
 */
export class RuleSet {
  readonly action: 'ALLOW' | 'DENY' | 'LOG';
  /** Another way to read a path can make a difference. */
  readonly #looksAtPaths: boolean;
  readonly #policies: readonly Policy[];
  readonly #byPeer: Map<string, PathIndex>;

  constructor(rbac: RBAC, place: string) {
    this.action = rbac.action === RBAC_Action.DENY ? 'DENY' : rbac.action === RBAC_Action.LOG ? 'LOG' : 'ALLOW';
    this.#looksAtPaths = looksAtPaths(rbac);
    this.#byPeer = new Map();
    this.#policies = Object.entries(rbac.policies)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, { permissions, principals, condition, checkedCondition }]) => {
        const at = `${place}, policy ${name}`;
        if (condition !== undefined || checkedCondition !== undefined) throw new MizzenError('unsupported-rbac', `${at}: conditions in CEL are not supported`);
        if (permissions.length === 0 || principals.length === 0) throw new MizzenError('invalid-rbac', `${at}: permissions and principals are required`);
        return {
          name,
          condition: and([or(principals.map((one) => compilePrincipal(one, at))), or(permissions.map((one) => compilePermission(one, at)))]),
        };
      });
  }

  /**
   * The name of the first policy that is met. A path that servers read in several ways meets a DENY in any of them, and an ALLOW only when it does so in all
   * (../route/path-views.ts).
   */
  match(subject: Subject): string | undefined {
    const key = subject.peer?.uri ?? '';
    const index = this.#byPeer.get(key) ?? this.#indexFor(key, subject.peer);
    const met = index.match(subject);
    const isGrant = this.action === 'ALLOW';
    if (!this.#looksAtPaths || (met !== undefined) !== isGrant) return met;
    const views = pathViews(subject.path);
    if (views === undefined) return met;
    for (const path of views.structural) {
      const other = index.match(onPath(subject, path));
      if ((other !== undefined) !== isGrant) return other;
    }
    if (isGrant) return met;
    for (const path of views.decoded) {
      const other = index.match(onPath(subject, path));
      if (other !== undefined) return other;
    }
    return undefined;
  }

  #indexFor(key: string, peer: PeerIdentity | undefined): PathIndex {
    const index = new PathIndex(this.#policies.filter(({ condition }) => condition.ofPeer(peer) !== false));
    if (this.#byPeer.size >= maxPeers) this.#byPeer.delete(this.#byPeer.keys().next().value!);
    this.#byPeer.set(key, index);
    return index;
  }
}

/** A condition in it is about paths: a path matcher or a template. */
function looksAtPaths(message: unknown): boolean {
  if (Array.isArray(message)) return message.some(looksAtPaths);
  if (typeof message !== 'object' || message === null || ArrayBuffer.isView(message)) return false;
  const { case: kind } = message as { readonly case?: unknown };
  return kind === 'urlPath' || kind === 'uriTemplate' || Object.values(message).some(looksAtPaths);
}

/** Policies by the paths that they are for. */
class PathIndex {
  readonly #policies: readonly Policy[];
  readonly #anywhere: number[];
  readonly #exact: Map<string, number[]>;
  readonly #prefixes: Map<string, number[]>;
  /** Of the prefixes, in ascending order. */
  readonly #lengths: number[];

  constructor(policies: readonly Policy[]) {
    this.#policies = policies;
    this.#anywhere = [];
    this.#exact = new Map();
    this.#prefixes = new Map();
    for (const [i, { condition }] of policies.entries()) {
      if (condition.paths === undefined) this.#anywhere.push(i);
      else
        for (const { text, isPrefix } of condition.paths) {
          const index = isPrefix ? this.#prefixes : this.#exact;
          const there = index.get(text);
          if (there === undefined) index.set(text, [i]);
          else if (there.at(-1) !== i) there.push(i);
        }
    }
    this.#lengths = [...new Set([...this.#prefixes.keys()].map(({ length }) => length))].sort((a, b) => a - b);
  }

  match(subject: Subject): string | undefined {
    const { path } = subject;
    let best = this.#first(this.#anywhere, subject, Infinity);
    const exact = this.#exact.get(path);
    if (exact !== undefined) best = this.#first(exact, subject, best);
    for (const length of this.#lengths) {
      if (length > path.length) break;
      const found = this.#prefixes.get(path.slice(0, length));
      if (found !== undefined) best = this.#first(found, subject, best);
    }
    return this.#policies[best]?.name;
  }

  /** The first policy before `best` that is met, else `best`. */
  #first(positions: readonly number[], subject: Subject, best: number): number {
    for (const i of positions) {
      if (i >= best) return best;
      if (this.#policies[i]!.condition.matches(subject)) return i;
    }
    return best;
  }
}
