/** `agent version`. */
import { VERSION } from '../version.ts'
import type { CommandLine } from './command-line.ts'

export function addVersion(line: CommandLine): void {
  line.program.version(`undernet ${VERSION}`, '-V, --version', 'print the version')
  line
    .command({
      usage: 'version',
      summary: 'the version of this command',
      examples: [['version --json', 'for scripts']],
    })
    .option('--json', 'print JSON, for scripts')
    .action(({ json }: { json?: boolean }) => {
      if (json)
        line.terminal.json({
          version: VERSION,
          node: process.versions.node,
          platform: process.platform,
          arch: process.arch,
        })
      else
        line.terminal.print(`undernet ${VERSION} (Node ${process.versions.node}, ${process.platform} ${process.arch})`)
    })
}
