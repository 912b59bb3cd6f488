/**
 * Addresses of Unix sockets as Istio writes them: `unix:///run/shop/mesh.sock`, or `unix://@name` in Linux's abstract namespace (unix(7)). Everywhere else in Mizzen such an address is its
 * path, which begins with `/` or `@`, and its port is 0.
 */
const scheme = 'unix://';

/** Longest path in bytes: sun_path has 108, with a NUL at the end; on macOS 104. */
export const maxUnixPathBytes = process.platform === 'linux' ? 107 : 103;

export function isUnixAddress(text: string): boolean {
  return text.startsWith('unix:');
}

/** The path of `unix:///path` or `unix://@name`. */
export function unixPathOf(text: string): string | undefined {
  return text.startsWith(scheme) ? text.slice(scheme.length) : undefined;
}

/** Whether an address of an endpoint or listener is the path of a Unix socket. */
export function isUnixPath(address: string): boolean {
  return address.startsWith('/') || address.startsWith('@');
}

/** Why the path of a Unix socket cannot be used, or undefined. */
export function unixPathProblem(path: string): string | undefined {
  const bytes = Buffer.byteLength(path);
  if (bytes > maxUnixPathBytes) return `the path of a Unix socket has at most ${maxUnixPathBytes} bytes, this one has ${bytes}`;
  if (/[\u0000-\u001f\u007f]/.test(path)) return 'the path of a Unix socket must not contain control characters';
  if (path.startsWith('@')) return path.length > 1 ? undefined : 'an abstract Unix socket needs a name: write unix://@NAME';
  if (!path.startsWith('/') || path.endsWith('/')) return 'the path of a Unix socket must be absolute and name a file: write unix:///FOLDER/NAME';
  if (path.split('/').some((part, i) => i > 0 && (part === '' || part === '.' || part === '..')))
    return 'the path of a Unix socket must not contain "//", "." or ".."';
  return undefined;
}
