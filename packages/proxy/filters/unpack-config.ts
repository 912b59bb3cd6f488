import type { DescMessage, MessageShape } from '@bufbuild/protobuf';
import type { Any } from '@bufbuild/protobuf/wkt';
import { MizzenError } from '@mizzen/common';
import { unpackAny } from '@mizzen/envoy-api';

/** The configuration of a filter. Throws MizzenError when it is of another type. */
export function unpackConfig<Desc extends DescMessage>(schema: Desc, any: Any | undefined, place: string): MessageShape<Desc> {
  const config = unpackAny(schema, any);
  if (config === undefined) throw new MizzenError('unsupported-filter', `${place}: ${any?.typeUrl ?? 'nothing'} is no ${schema.typeName}`);
  return config;
}
