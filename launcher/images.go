package launcher

// DefaultImage is what sessions run when nothing else is asked for; BuildImage
// makes it.
const DefaultImage = "localhost/vfolder-session:latest"
