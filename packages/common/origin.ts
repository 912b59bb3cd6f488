/**
 * Where a resource came from: the provenance that travels with it from the source through the store and xDS to the proxy, so that a
 * request can be explained by the line that decided it.
 */
export interface Origin {
  /** `file` for a folder or an applied file, `api` for an object that a client wrote without saying from which file. */
  readonly source: 'file' | 'api';
  /** The file's path as its reader gave it; for `api` the client's name (field manager or user agent). */
  readonly name: string;
  /** 1-based line and column of the document's first key; absent for `api`. */
  readonly line?: number;
  readonly column?: number;
  /** 1-based lines of the fields of `spec` and of the objects inside lists, by path: `spec.http[0]` -> 12. Lets a route name its own line. */
  readonly lines?: Readonly<Record<string, number>>;
}

/** `bookinfo.yaml:41:1`, or `kubectl (api)`. With `path`, the line of that part, or of the nearest around it that is known. */
export function describeOrigin(origin: Origin | undefined, path?: string): string {
  if (!origin) return '';
  if (origin.source === 'api') return `${origin.name} (api)`;
  const line = path === undefined ? undefined : lineOf(origin, path);
  if (line !== undefined) return `${origin.name}:${line}`;
  return origin.line === undefined ? origin.name : `${origin.name}:${origin.line}:${origin.column ?? 1}`;
}

function lineOf({ lines }: Origin, path: string): number | undefined {
  for (let at = path; at !== ''; at = at.slice(0, Math.max(0, at.lastIndexOf('.'), at.lastIndexOf('[')))) {
    const line = lines?.[at];
    if (line !== undefined) return line;
  }
  return undefined;
}
