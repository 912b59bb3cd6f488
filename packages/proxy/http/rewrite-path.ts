import type { PathRewrite, RedirectAction } from '../route/route.ts';

/** A target's path and what stands behind it, `?` included. */
function split(target: string): readonly [path: string, rest: string] {
  const query = target.indexOf('?');
  return query < 0 ? [target, ''] : [target.slice(0, query), target.slice(query)];
}

/** The target that a rewriting route sends on (route_components.proto `prefix_rewrite`, `regex_rewrite`). */
export function rewriteTarget(target: string, rewrite: PathRewrite): string {
  const [path, rest] = split(target);
  const changed =
    rewrite.kind === 'prefix'
      ? rewrite.text + path.slice(rewrite.length)
      : rewrite.pattern.matcher(path).replaceAll(rewrite.substitution.replaceAll('$', '\\$').replace(/\\(\d)/g, '$$$1'));
  return `${changed.startsWith('/') ? changed : `/${changed}`}${rest}`;
}

/** Where a redirect points to: what the action does not say stays as the request had it. */
export function redirectLocation(action: RedirectAction, target: string, authority: string, isHttps: boolean): string {
  const [path, rest] = split(target);
  const scheme = action.scheme || (isHttps ? 'https' : 'http');
  const currentHost = authority.replace(/:\d+$/, '');
  const currentPort = /:(\d+)$/.exec(authority)?.[1];
  const port = action.port !== 0 ? `:${action.port}` : action.scheme || action.host || currentPort === undefined ? '' : `:${currentPort}`;
  const newPath = action.path ?? (action.prefixRewrite === undefined ? path : action.prefixRewrite.text + path.slice(action.prefixRewrite.length));
  return `${scheme}://${action.host || currentHost}${port}${newPath}${newPath.includes('?') ? '' : rest}`;
}
