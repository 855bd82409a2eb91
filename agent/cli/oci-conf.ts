/** `agent oci-conf`: what containerd, podman or docker need so that they pull through this agent. */
import type { OciConf } from '../api/image-contract.ts'
import { AgentError } from '../error.ts'
import { printable } from '../printable.ts'
import type { CommandLine } from './command-line.ts'

const PROGRAMS = ['containerd', 'podman', 'docker']

export function addOciConf(line: CommandLine): void {
  const command = line.command({
    usage: 'oci-conf <program>',
    summary: 'the lines that containerd, podman (with skopeo and buildah) or docker need to pull through this agent',
    details:
      'Registries that are mirrored are those of `registries` in the configuration. Where there are several files, each begins with its name in a comment.',
    examples: [
      ['oci-conf podman', 'read them'],
      ['oci-conf podman | sudo tee /etc/containers/registries.conf.d/undernet.conf', 'put them where they belong'],
      ["oci-conf --json containerd | jq -r '.files[0].path'", 'for scripts'],
    ],
  })
  line.asks<[string], object>(command, async ({ client, terminal, isJson }, _options, program) => {
    if (!PROGRAMS.includes(program))
      throw new AgentError('usage', `there are lines for ${PROGRAMS.join(', ')}, not for ${JSON.stringify(program)}`)
    const conf = await client.get<OciConf>(`oci-conf/${program}`)
    if (isJson) return terminal.json(conf)
    const [only, ...others] = conf.files
    // One file can be piped to where it belongs.
    if (only !== undefined && others.length === 0) {
      terminal.note(`For ${printable(only.path)}:`)
      terminal.print(...only.lines.map(printable))
    } else for (const { path, lines } of conf.files) terminal.print(`# ${printable(path)}`, ...lines.map(printable), '')
    if (terminal.isInteractive) terminal.note(`Then: ${printable(conf.next)}`)
  })
}
