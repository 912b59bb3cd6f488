import { currentFeatures, secretRemovalFeature } from '@mizzen/envoy-api';
import { isWithheld } from './supported-fields.ts';

/** What this proxy declares in `client_features` of its node: `filter/NAME` for each HTTP filter, `fields/TYPE=NAME,...` for each message. */
export function declaredFeatures(): string[] {
  if (isWithheld('declaration')) return [];
  const removal = isWithheld(secretRemovalFeature) ? [] : [secretRemovalFeature];
  const features = currentFeatures.flatMap((feature) => {
    const [kind, name = '', fields] = feature.split(/[/=]/);
    if (kind === 'filter') return isWithheld(name) ? [] : [feature];
    return [`fields/${name}=${fields!.split(',').filter((field) => !isWithheld(`${name}.${field}`))}`];
  });
  return [...features, ...removal];
}
