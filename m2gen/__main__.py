from m2gen.cli import main

main()
