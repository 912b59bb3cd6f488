/**
 * A path template of google.api.http: `/v1/{name=shelves/*}/books/{id}:archive` (google/api/http.proto, "Path template syntax").
 */
export interface PathTemplate {
  readonly pattern: RegExp;
  /** Dotted paths of the fields that the pattern's groups are for. */
  readonly fields: readonly string[];
}

/** Throws Error where it is no template. */
export function compilePathTemplate(template: string): PathTemplate {
  const fields: string[] = [];
  const match = /^(\/.*?)(:[\w.-]+)?$/.exec(template);
  if (match === null) throw new Error(`${JSON.stringify(template)} is no path template: it begins with /`);
  const segmentsOf = (text: string) =>
    text
      .split('/')
      .map((segment) => (segment === '*' ? '[^/:]+' : segment === '**' ? '.+' : segment.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')))
      .join('/');
  let source = '';
  let at = 0;
  const path = match[1]!;
  for (const variable of path.matchAll(/\{([\w.]+)(?:=([^{}]+))?\}/g)) {
    source += segmentsOf(path.slice(at, variable.index));
    fields.push(variable[1]!);
    source += `(${segmentsOf(variable[2] ?? '*')})`;
    at = variable.index + variable[0].length;
  }
  source += segmentsOf(path.slice(at));
  if (/[{}]/.test(source.replaceAll('\\{', '').replaceAll('\\}', '')) || /\\[{}]/.test(source))
    throw new Error(`the braces of ${JSON.stringify(template)} do not match`);
  // As the syntax says; several would make a path's cost grow with a power of its length.
  if (/\*\*(?!\}?$)/.test(path)) throw new Error(`${JSON.stringify(template)}: ** is the last segment`);
  return { pattern: new RegExp(`^${source}${match[2] === undefined ? '' : match[2].replaceAll('.', '\\.')}$`), fields };
}
