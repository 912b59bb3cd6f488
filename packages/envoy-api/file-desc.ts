import type { DescFile } from '@bufbuild/protobuf';
import { fileDesc as describeFile } from '@bufbuild/protobuf/codegenv2';

/**
 * What generated files call with their descriptor, in place of the library's function of this name (scripts/generate-envoy-api.mjs). The library makes a registry for each file and walks all that
 * its imports import, by every way there is; for Envoy's files, which import each other widely, that was half of a proxy's start. The types of a file can only name those of its direct imports.
 */
export function fileDesc(descriptor: string, imports: readonly DescFile[] = []): DescFile {
  const file = describeFile(
    descriptor,
    imports.map((each) => ({ ...each, dependencies: [] })),
  );
  return Object.assign(file, { dependencies: imports });
}
