import type { RequestHead } from '../message/request-head.ts';
import type { HostRewrite, PathRewrite, RedirectAction } from '../route/route.ts';

/** A target's path and what stands behind it, `?` included. */
function split(target: string): readonly [path: string, rest: string] {
  const query = target.indexOf('?');
  return query < 0 ? [target, ''] : [target.slice(0, query), target.slice(query)];
}

/** The target that a rewriting route sends on (route_components.proto `prefix_rewrite`, `regex_rewrite`). */
export function rewriteTarget(target: string, rewrite: PathRewrite): string {
  const [path, rest] = split(target);
  const changed = rewrite.kind === 'prefix' ? rewrite.text + (rewrite.length < 0 ? '' : path.slice(rewrite.length)) : rewrite.substitution.apply(path);
  return `${changed.startsWith('/') ? changed : `/${changed}`}${rest}`;
}

/** The host that a rewriting route tells its upstream; undefined: it stays. */
export function rewrittenHost(rewrite: HostRewrite, head: RequestHead): string | undefined {
  switch (rewrite.kind) {
    case 'literal':
      return rewrite.text;
    case 'header':
      return head.headers.get(rewrite.name) || undefined;
    case 'path':
      return rewrite.substitution.apply(split(head.target)[0]);
  }
}

/** Where a redirect points to: what the action does not say stays as the request had it. */
export function redirectLocation(action: RedirectAction, target: string, authority: string, isHttps: boolean): string {
  const before = isHttps ? 'https' : 'http';
  const scheme = action.scheme || before;
  const host = action.host || hostOf(authority, action, before, scheme);
  const port = action.port === 0 ? '' : `:${action.port}`;
  return `${scheme}://${host}${port}${redirectTarget(action, target)}`;
}

/** The request's own, without a port that the redirect replaces, or that only said what the scheme did. */
function hostOf(authority: string, action: RedirectAction, before: string, scheme: string): string {
  const port = /:\d+$/.exec(authority)?.[0];
  if (port === undefined) return authority;
  const isImplied = scheme !== before && port === (before === 'https' ? ':443' : ':80');
  return action.port !== 0 || isImplied ? authority.slice(0, -port.length) : authority;
}

function redirectTarget(action: RedirectAction, target: string): string {
  if (action.path?.includes('?')) return action.path;
  const [path, rest] = split(action.rewrite === undefined ? target : rewriteTarget(target, action.rewrite));
  return `${action.path ?? path}${action.stripsQuery ? '' : rest}`;
}
