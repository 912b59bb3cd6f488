import type { PeerIdentity } from '../tls/peer-identity.ts';
import type { Subject } from './subject.ts';

/** Paths that a rule is for: one, or all that begin so. */
export interface PathSpan {
  readonly text: string;
  readonly isPrefix: boolean;
}

/** A compiled condition of a rule. */
export interface Node {
  matches(subject: Subject): boolean;
  /** What it comes to for every request of this peer; undefined: that depends on the request. */
  ofPeer(peer: PeerIdentity | undefined): boolean | undefined;
  /** It can be met on these paths only; undefined: on any. */
  readonly paths: readonly PathSpan[] | undefined;
}

const unknown = () => undefined;

/** A condition about a request or a connection. */
export function test(matches: (subject: Subject) => boolean, paths?: readonly PathSpan[]): Node {
  return { matches, ofPeer: unknown, paths };
}

export function peerTest(matches: (peer: PeerIdentity | undefined) => boolean): Node {
  return { matches: ({ peer }) => matches(peer), ofPeer: matches, paths: undefined };
}

export function constant(value: boolean): Node {
  return { matches: () => value, ofPeer: () => value, paths: value ? undefined : [] };
}

export function not(node: Node): Node {
  return {
    matches: (subject) => !node.matches(subject),
    ofPeer(peer) {
      const inner = node.ofPeer(peer);
      return inner === undefined ? undefined : !inner;
    },
    paths: undefined,
  };
}

export function and(nodes: readonly Node[]): Node {
  if (nodes.length === 1) return nodes[0]!;
  return {
    matches(subject) {
      for (const node of nodes) if (!node.matches(subject)) return false;
      return true;
    },
    ofPeer(peer) {
      let all: boolean | undefined = true;
      for (const node of nodes) {
        const one = node.ofPeer(peer);
        if (one === false) return false;
        if (one === undefined) all = undefined;
      }
      return all;
    },
    // All must be met: any of them says where it can be at most, the one with the fewest paths best.
    paths: nodes.reduce<readonly PathSpan[] | undefined>(
      (best, { paths }) => (paths !== undefined && (best === undefined || paths.length < best.length) ? paths : best),
      undefined,
    ),
  };
}

export function or(nodes: readonly Node[]): Node {
  if (nodes.length === 1) return nodes[0]!;
  return {
    matches(subject) {
      for (const node of nodes) if (node.matches(subject)) return true;
      return false;
    },
    ofPeer(peer) {
      let any: boolean | undefined = false;
      for (const node of nodes) {
        const one = node.ofPeer(peer);
        if (one === true) return true;
        if (one === undefined) any = undefined;
      }
      return any;
    },
    paths: nodes.some(({ paths }) => paths === undefined) ? undefined : nodes.flatMap(({ paths }) => paths!),
  };
}
