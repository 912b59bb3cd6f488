import type { HttpMatchSpec, HttpRouteSpec, StringMatchSpec, VirtualServiceSpec } from '@mizzen/api';
import { GenerationBudget, generationLimits } from './generate/generation-budget.ts';
import { type Configured, isVisible } from './snapshot.ts';

/**
 * VirtualServices that leave a part of their paths to others (istio/api virtual_service.proto `Delegate`): a route with a delegate becomes the
 * delegate's routes, each under both conditions. One level deep, as in Istio.
 */
export function withDelegates(virtualServices: readonly Configured<VirtualServiceSpec>[]): Configured<VirtualServiceSpec>[] {
  // Those without hosts serve nobody but whom they are delegates of.
  return virtualServices.filter(({ spec }) => spec.hosts?.length).map((root) => expanded(root, virtualServices));
}

/** The VirtualService that a route is left to; undefined: there is none that the root may see. */
export function delegateOf(
  route: HttpRouteSpec,
  root: Configured<VirtualServiceSpec>,
  all: readonly Configured<VirtualServiceSpec>[],
): Configured<VirtualServiceSpec> | undefined {
  const { name, namespace = root.namespace } = route.delegate ?? {};
  const candidate = delegates(all).get(`${namespace}/${name}`);
  return candidate && isVisible(candidate.spec.exportTo, candidate.namespace, root.namespace) ? candidate : undefined;
}

const delegateIndexes = new WeakMap<readonly Configured<VirtualServiceSpec>[], ReadonlyMap<string, Configured<VirtualServiceSpec>>>();

/** VirtualServices without hosts, by namespace and name; made once for a list. */
function delegates(all: readonly Configured<VirtualServiceSpec>[]): ReadonlyMap<string, Configured<VirtualServiceSpec>> {
  let index = delegateIndexes.get(all);
  if (index === undefined) {
    index = new Map(all.filter(({ kind, spec }) => kind === 'VirtualService' && !spec.hosts?.length).map((one) => [`${one.namespace}/${one.name}`, one]));
    delegateIndexes.set(all, index);
  }
  return index;
}

function expanded(root: Configured<VirtualServiceSpec>, all: readonly Configured<VirtualServiceSpec>[]): Configured<VirtualServiceSpec> {
  if (!root.spec.http?.some(({ delegate }) => delegate)) return root;
  const budget = new GenerationBudget(`matches of the VirtualService ${root.namespace}/${root.name} with its delegates`, generationLimits.maxDelegatedMatches);
  const http = root.spec.http.flatMap((route, i): HttpRouteSpec[] => {
    if (!route.delegate) return [{ ...route, source: { object: root, path: `spec.http[${i}]` } }];
    const delegate = delegateOf(route, root, all);
    return (delegate?.spec.http ?? []).flatMap((leaf, j) => {
      if (leaf.delegate) return [];
      budget.spend(Math.max(1, route.match?.length ?? 0) * Math.max(1, leaf.match?.length ?? 0));
      const match = bothMatches(route.match, leaf.match);
      return match === 'never' ? [] : [under(route, leaf, match, { object: delegate!, path: `spec.http[${j}]` })];
    });
  });
  return { ...root, spec: { ...root.spec, http } };
}

/** The delegate's own word counts; where it says nothing, the root's. */
function under(root: HttpRouteSpec, leaf: HttpRouteSpec, match: readonly HttpMatchSpec[], source: HttpRouteSpec['source']): HttpRouteSpec {
  const { delegate: _delegate, match: _match, route: _route, name: _name, ...policies } = root;
  const headers = root.headers || leaf.headers ? { request: bothHeaders(root, leaf, 'request'), response: bothHeaders(root, leaf, 'response') } : undefined;
  return {
    ...policies,
    ...leaf,
    ...(root.name || leaf.name ? { name: [root.name, leaf.name].filter(Boolean).join('-') } : {}),
    match,
    ...(headers ? { headers: headers as NonNullable<HttpRouteSpec['headers']> } : {}),
    source,
  };
}

function bothHeaders(root: HttpRouteSpec, leaf: HttpRouteSpec, side: 'request' | 'response') {
  const [a, b] = [root.headers?.[side], leaf.headers?.[side]];
  return { set: { ...a?.set, ...b?.set }, add: { ...a?.add, ...b?.add }, remove: [...(a?.remove ?? []), ...(b?.remove ?? [])] };
}

/** Each condition of the one with each of the other, but for pairs that no request can meet; 'never': there is no other pair. */
function bothMatches(root: readonly HttpMatchSpec[] | undefined, leaf: readonly HttpMatchSpec[] | undefined): readonly HttpMatchSpec[] | 'never' {
  if (!root?.length) return leaf ?? [];
  if (!leaf?.length) return root;
  const pairs = root.flatMap((a) => leaf.flatMap((b) => (excludes(a, b) ? [] : [both(a, b)])));
  return pairs.length === 0 ? 'never' : pairs;
}

function both(root: HttpMatchSpec, leaf: HttpMatchSpec): HttpMatchSpec {
  const merged = <Key extends 'headers' | 'withoutHeaders' | 'queryParams' | 'sourceLabels'>(key: Key) =>
    root[key] || leaf[key] ? { [key]: { ...root[key], ...leaf[key] } } : {};
  const name = [root.name, leaf.name].filter(Boolean).join('-');
  return {
    ...root,
    ...leaf,
    ...(name ? { name } : {}),
    ...merged('headers'),
    ...merged('withoutHeaders'),
    ...merged('queryParams'),
    ...merged('sourceLabels'),
  };
}

/** Whether a delegate's condition goes beyond what was left to it. */
function excludes(root: HttpMatchSpec, leaf: HttpMatchSpec): boolean {
  const differ = <Value>(a: Value | undefined, b: Value | undefined) => a !== undefined && b !== undefined && a !== b;
  const texts = (['uri', 'scheme', 'method', 'authority'] as const).some((field) => textExcludes(root[field], leaf[field]));
  const named = (['headers', 'withoutHeaders', 'queryParams'] as const).some((field) =>
    Object.entries(root[field] ?? {}).some(([name, value]) => textExcludes(value, leaf[field]?.[name])),
  );
  return (
    texts ||
    named ||
    (root.ignoreUriCase ?? false) !== (leaf.ignoreUriCase ?? false) ||
    differ(root.port, leaf.port) ||
    differ(root.sourceNamespace, leaf.sourceNamespace) ||
    Object.entries(root.sourceLabels ?? {}).some(([name, value]) => differ(value, leaf.sourceLabels?.[name]))
  );
}

function textExcludes(root: StringMatchSpec | null | undefined, leaf: StringMatchSpec | null | undefined): boolean {
  if (!root || !leaf) return false;
  if (root.regex !== undefined || leaf.regex !== undefined) return true;
  if (root.exact !== undefined) return leaf.exact !== root.exact;
  if (root.prefix !== undefined) return !(leaf.exact ?? leaf.prefix ?? '').startsWith(root.prefix);
  return false;
}
