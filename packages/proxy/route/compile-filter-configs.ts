import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError } from '@mizzen/common';
import { filterKinds } from '../filters/filter-kinds.ts';

/** What a route says to filters (`typed_per_filter_config`), by their names, but for those of `others`, which somebody else compiles. */
export function compileFilterConfigs(perFilter: Readonly<Record<string, Any>>, others: ReadonlySet<string>, place: string): Map<string, unknown> | undefined {
  let compiled: Map<string, unknown> | undefined;
  for (const [name, any] of Object.entries(perFilter)) {
    if (others.has(name)) continue;
    const kind = filterKinds.get(name);
    if (kind?.compileRoute === undefined) throw new MizzenError('unsupported-filter', `${place}: the HTTP filter ${name} takes nothing from routes here`);
    (compiled ??= new Map()).set(name, kind.compileRoute(any, `${place}, ${name}`));
  }
  return compiled;
}
