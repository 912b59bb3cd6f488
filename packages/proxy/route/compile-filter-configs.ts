import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError } from '@mizzen/common';
import { filterKindOf } from '../filters/filter-kinds.ts';

/** What one place of a configuration says to filters (`typed_per_filter_config`), by their names. */
export interface FilterConfigs {
  readonly perFilter: Readonly<Record<string, Any>>;
  readonly place: string;
}

/** What the places say to filters, the last first; but for the filters of `others`, which are compiled elsewhere. */
export function compileFilterConfigs(places: readonly FilterConfigs[], others: ReadonlySet<string>): Map<string, unknown> | undefined {
  const effective = new Map<string, { readonly any: Any; readonly place: string }>();
  for (const { perFilter, place } of places) for (const [name, any] of Object.entries(perFilter)) effective.set(name, { any, place });
  let compiled: Map<string, unknown> | undefined;
  for (const [name, { any, place }] of effective) {
    if (others.has(name)) continue;
    const kind = filterKindOf(name, any);
    if (kind?.compileRoute === undefined) throw new MizzenError('unsupported-filter', `${place}: the HTTP filter ${name} takes nothing from routes here`);
    (compiled ??= new Map()).set(name, kind.compileRoute(any, `${place}, ${name}`));
  }
  return compiled;
}
