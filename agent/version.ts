/** The release, as package.json has it; a bundle carries it inside. */
import manifest from '../package.json' with { type: 'json' }

export const VERSION: string = manifest.version
