import type { RequestHead } from '../message/request-head.ts';
import type { HasMetadata } from './metadata-matcher.ts';
import type { Route } from './route.ts';

/** Below this many routes, looking at one after the other is quickest. */
const linearLimit = 4;

/**
 * Finds the first route of a virtual host that fits a request, in a time that does not grow with the number of routes whose paths are another's:
 * exact paths are looked up, prefixes are followed letter by letter. Only regexes, and routes that share a path, are tried in turn. The order of the
 * routes decides as if each had been tried (route_components.proto `VirtualHost.routes`).
 */
export class PathIndex {
  readonly #routes: readonly Route[];
  readonly #asWritten: PathLookup | undefined;
  readonly #folded: PathLookup | undefined;
  /** Positions of routes that no path tells apart: regexes, CONNECT. */
  readonly #others: readonly number[];

  constructor(routes: readonly Route[]) {
    this.#routes = routes;
    if (routes.length <= linearLimit) {
      this.#asWritten = undefined;
      this.#folded = undefined;
      this.#others = [...routes.keys()];
      return;
    }
    const asWritten = new PathLookup();
    const folded = new PathLookup();
    const others: number[] = [];
    for (const [i, { path }] of routes.entries()) {
      const lookup = path.ignoresCase ? folded : asWritten;
      if (path.kind === 'exact') lookup.addExact(path.text, i);
      else if (path.kind === 'prefix' || path.kind === 'segmentPrefix') lookup.addPrefix(path.text, i);
      else others.push(i);
    }
    this.#asWritten = asWritten.isEmpty ? undefined : asWritten;
    this.#folded = folded.isEmpty ? undefined : folded;
    this.#others = others;
  }

  find(head: RequestHead, metadata?: HasMetadata): Route | undefined {
    const query = head.target.indexOf('?');
    const path = query < 0 ? head.target : head.target.substring(0, query);
    let best = this.#routes.length;
    if (this.#asWritten !== undefined) best = this.#firstOf(this.#asWritten, path, head, path, metadata, best);
    if (this.#folded !== undefined) best = this.#firstOf(this.#folded, path.toLowerCase(), head, path, metadata, best);
    best = this.#first(this.#others, head, path, metadata, best);
    return this.#routes[best];
  }

  #firstOf(lookup: PathLookup, text: string, head: RequestHead, path: string, metadata: HasMetadata | undefined, before: number): number {
    let best = before;
    const exact = lookup.exact.get(text);
    if (exact !== undefined) best = this.#first(exact, head, path, metadata, best);
    for (let node = lookup.root, at = 0; ; ) {
      if (node.positions !== undefined) best = this.#first(node.positions, head, path, metadata, best);
      const next = node.children?.get(text.charCodeAt(at));
      if (next === undefined || !text.startsWith(next.label, at)) return best;
      at += next.label.length;
      node = next;
    }
  }

  /** The first of these positions before `best` whose route fits; `best` when none does. */
  #first(positions: readonly number[], head: RequestHead, path: string, metadata: HasMetadata | undefined, best: number): number {
    for (let i = 0; i < positions.length; i++) {
      const position = positions[i]!;
      if (position >= best) return best;
      if (this.#routes[position]!.matches(head, path, metadata)) return position;
    }
    return best;
  }
}

/** A radix tree of prefixes: a node stands for the text of the labels from the root to it. */
interface PrefixNode {
  label: string;
  /** Routes with this very prefix, in their order. */
  positions: number[] | undefined;
  /** By the first code unit of their labels. */
  children: Map<number, PrefixNode> | undefined;
}

class PathLookup {
  readonly exact: Map<string, number[]>;
  readonly root: PrefixNode;

  constructor() {
    this.exact = new Map();
    this.root = { label: '', positions: undefined, children: undefined };
  }

  get isEmpty(): boolean {
    return this.exact.size === 0 && this.root.positions === undefined && this.root.children === undefined;
  }

  addExact(text: string, position: number): void {
    const positions = this.exact.get(text);
    if (positions === undefined) this.exact.set(text, [position]);
    else positions.push(position);
  }

  addPrefix(text: string, position: number): void {
    let node = this.root;
    for (let at = 0; at < text.length; ) {
      node.children ??= new Map();
      const first = text.charCodeAt(at);
      const child = node.children.get(first);
      if (child === undefined) {
        const leaf: PrefixNode = { label: text.slice(at), positions: undefined, children: undefined };
        node.children.set(first, leaf);
        node = leaf;
        break;
      }
      const shared = sharedLength(child.label, text, at);
      if (shared < child.label.length) {
        const between: PrefixNode = { label: child.label.slice(0, shared), positions: undefined, children: new Map([[child.label.charCodeAt(shared), child]]) };
        child.label = child.label.slice(shared);
        node.children.set(first, between);
        node = between;
      } else node = child;
      at += shared;
    }
    if (node.positions === undefined) node.positions = [position];
    else node.positions.push(position);
  }
}

function sharedLength(label: string, text: string, from: number): number {
  let i = 0;
  while (i < label.length && from + i < text.length && label.charCodeAt(i) === text.charCodeAt(from + i)) i++;
  return i;
}
