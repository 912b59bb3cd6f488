/**
 * Path templates of an OpenAPI document by their segments, so that a look-up costs what the path costs and not what the document does.
 * OpenAPI 3.1, "Path Templating Matching": concrete paths come before templated ones.
 */
export interface PathMatch<T> {
  readonly item: T;
  readonly values: readonly string[];
}

interface Node<T> {
  readonly literals: Map<string, Node<T>>;
  /** Templated segments, in the order of the document. */
  readonly templates: { readonly text: string; readonly pieces: readonly string[]; readonly node: Node<T> }[];
  /** What ends here. */
  readonly items: { readonly item: T; readonly order: number; readonly parameters: number }[];
}

/** Nodes that one look-up visits: paths that fit many templates at every segment. */
const maxVisits = 10_000;

export class PathTrie<T> {
  readonly #root: Node<T>;
  #count: number;

  constructor() {
    this.#root = newNode();
    this.#count = 0;
  }

  /** Returns the names of the template's parameters. Throws Error where it is not a template. */
  add(template: string, item: T): readonly string[] {
    if (!template.startsWith('/')) throw new Error('a path begins with /');
    const names: string[] = [];
    let node = this.#root;
    for (const segment of template.slice(1).split('/')) {
      const parts = segment.split(/\{([^{}]+)\}/);
      if (parts.some((part, i) => i % 2 === 0 && /[{}]/.test(part))) throw new Error('its braces do not match');
      if (parts.length === 1) {
        let next = node.literals.get(segment);
        if (next === undefined) node.literals.set(segment, (next = newNode()));
        node = next;
        continue;
      }
      names.push(...parts.filter((_, i) => i % 2 === 1));
      const pieces = parts.filter((_, i) => i % 2 === 0);
      const text = pieces.join('{}');
      let next = node.templates.find((one) => one.text === text);
      if (next === undefined) node.templates.push((next = { text, pieces, node: newNode() }));
      node = next.node;
    }
    node.items.push({ item, order: this.#count++, parameters: names.length });
    return names;
  }

  /** All that the path fits, those with the fewest parameters first. */
  find(path: string): PathMatch<T>[] {
    if (!path.startsWith('/')) return [];
    const segments = path.slice(1).split('/');
    const found: { readonly item: T; readonly order: number; readonly parameters: number; readonly values: readonly string[] }[] = [];
    let visits = 0;
    const visit = (node: Node<T>, at: number, values: readonly string[]): void => {
      if (++visits > maxVisits) return;
      if (at === segments.length) {
        for (const one of node.items) found.push({ ...one, values });
        return;
      }
      const segment = segments[at] ?? '';
      const literal = node.literals.get(segment);
      if (literal !== undefined) visit(literal, at + 1, values);
      for (const { pieces, node: next } of node.templates) {
        const taken = valuesOf(segment, pieces);
        if (taken !== undefined) visit(next, at + 1, [...values, ...taken]);
      }
    };
    visit(this.#root, 0, []);
    return found.sort((a, b) => a.parameters - b.parameters || a.order - b.order);
  }
}

function newNode<T>(): Node<T> {
  return { literals: new Map(), templates: [], items: [] };
}

/** What stands between the pieces, none of it empty, each as short as possible; undefined where the segment does not fit. */
function valuesOf(segment: string, pieces: readonly string[]): string[] | undefined {
  const first = pieces[0] ?? '';
  const last = pieces[pieces.length - 1] ?? '';
  if (!segment.startsWith(first)) return undefined;
  const values: string[] = [];
  let at = first.length;
  for (const piece of pieces.slice(1, -1)) {
    const end = segment.indexOf(piece, at + 1);
    if (end < 0) return undefined;
    values.push(segment.slice(at, end));
    at = end + piece.length;
  }
  const end = segment.length - last.length;
  if (end <= at || !segment.endsWith(last)) return undefined;
  values.push(segment.slice(at, end));
  return values;
}
