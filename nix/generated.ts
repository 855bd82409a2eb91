/**
 * What is made from the code and kept in the repository, by file: `npm run reference` writes it, and test/generated.test.ts fails when
 * something else is there.
 */
import { commandsPage } from './commands-page.ts'
import { configurationPage } from './configuration-page.ts'
import { metricsPage } from './metrics-page.ts'
import { optionsJson, unitJson } from './options.ts'

export const generated: ReadonlyMap<string, () => string> = new Map([
  ['agent/reference/commands.md', commandsPage],
  ['agent/reference/configuration.md', configurationPage],
  ['agent/reference/metrics.md', metricsPage],
  ['nix/options.json', optionsJson],
  ['nix/unit.json', unitJson],
])
